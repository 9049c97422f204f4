"""An accuracy report as one HTML page: tables, plots, crops."""
