"""Training data: photos, drawn cards, degradations and batches."""
