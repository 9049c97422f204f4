"""Accuracy of a bundle: metrics, intervals, gates, and the methods that are compared."""
