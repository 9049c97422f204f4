"""Image metrics as pure torch functions on batches, for training and measurement."""
