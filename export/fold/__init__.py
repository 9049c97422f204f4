"""The one-step diffusion model folded into two lean graphs."""
