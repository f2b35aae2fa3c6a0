"""Manifests: which image is whose, with which label, in which split, and whether that can be trusted."""
