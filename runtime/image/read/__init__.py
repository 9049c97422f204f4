"""From the file of a photo to its pixels."""
