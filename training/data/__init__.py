"""Training pairs: photos, cards, degradations, batches."""
