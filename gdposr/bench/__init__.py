"""Speed and memory of a bundle, beside other models."""
