"""Calibration: metrics, accuracy tables and reports that tell whether the small model is still as good."""
