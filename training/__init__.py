"""Training: data, metrics, the one-step diffusion model, and the stages (pretraining, NAOSD, GDPO) on one trainer."""
