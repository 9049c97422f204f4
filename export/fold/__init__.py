"""Folding a one-step diffusion model into two graphs: adapters, prompt and timestep become constants."""
