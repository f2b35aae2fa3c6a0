"""Prepared images on disk (cache) and as batches (loaders)."""
