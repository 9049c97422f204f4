"""Accuracy of a bundle: the methods that are compared, their table with intervals and differences, and gates."""
