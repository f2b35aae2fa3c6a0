"""A release: the folder that goes to a clinical inference server. Built, opened and verified here; it cannot train."""
