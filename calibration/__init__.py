"""Calibration: accuracy tables, reports, blind votes and studies that tell whether the small model is still as good."""
