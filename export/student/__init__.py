"""The student that ships: its network, the pictures it learns from, and the stages of its training."""
