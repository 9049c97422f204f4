"""What a bundle is: manifest, files and hashes, read safely from a folder or an archive."""
