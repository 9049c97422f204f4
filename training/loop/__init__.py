"""The training loop that all stages share: budget, averages, validation."""
