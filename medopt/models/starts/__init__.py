"""Pretrained weights: read from a file, recognised by their keys, and fitted to a study's network."""
