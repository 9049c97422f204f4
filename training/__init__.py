"""GPU training stage: degradation, data, the one-step model, NAOSD and GDPO, on one trainer."""
