"""Reports as one HTML page: tables, plots and crops, written by the templates in `templates/`."""
