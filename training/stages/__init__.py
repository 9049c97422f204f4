"""The stages of training: pretraining, NAOSD, GDPO, with their settings and rewards."""
