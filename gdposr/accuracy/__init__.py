"""What `gdposr accuracy` compares, and the limits that it checks."""
