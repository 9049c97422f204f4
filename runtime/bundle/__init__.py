"""The format of a bundle: manifest, files and hashes. It is read safely from a folder or a .zip."""
