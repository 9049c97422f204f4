"""The training loop that all stages share: trainer, budget, moving averages and validation."""
