"""Enlarging a picture: tiles, the model at work on them, colour and scaling."""
