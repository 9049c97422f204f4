"""The training stages of the one-step model: pretraining, NAOSD and GDPO, with their settings and rewards."""
