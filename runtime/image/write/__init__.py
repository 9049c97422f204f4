"""From the pixels of a photo to its file."""
