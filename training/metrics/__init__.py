"""Scores of pictures for training and measurement, of torch batches or of single NumPy pictures; each module says which."""
