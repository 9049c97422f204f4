"""A picture enlarged: tiles, memory, the model at work, colour."""
