"""The rows of `gdposr accuracy`, and the limits that it checks."""
