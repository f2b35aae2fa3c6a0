"""From `Predictions` to figures with intervals: calibration, operating point, metrics, bootstrap, pictures."""
