"""A run over many photos: plan, reading ahead, progress."""
