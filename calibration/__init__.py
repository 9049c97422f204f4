"""Calibration stage: is the small model still as good? Full-reference and no-reference metrics, accuracy tables and reports."""
