"""Calibration stage: is the small model still as good? Metrics, accuracy tables and reports."""
