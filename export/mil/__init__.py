"""Core ML packages on any machine: read the MIL program inside, evaluate it, look for trouble, compare it with a bundle."""
