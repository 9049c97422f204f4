"""The one-step diffusion model: its parts, and how to load, save and merge it."""
