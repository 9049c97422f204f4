"""GPU training stage: degradation, data, perceptual features and (later) NAOSD and GDPO."""
