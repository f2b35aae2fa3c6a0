"""Releases at work: batch prediction now; the inference server stands on the same predictor."""
