"""The one-step diffusion model: its parts, and how it is loaded, saved and merged."""
