"""Pictures, written as PNG: the only room that imports matplotlib."""
