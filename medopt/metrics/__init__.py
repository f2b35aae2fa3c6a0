"""Metrics with their intervals: numpy and scipy only, usable without a study."""
