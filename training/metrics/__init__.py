"""Scores of pictures as pure torch functions on batches, for training and for measurement alike."""
