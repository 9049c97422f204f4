"""Tools for a clone of the repository: the demonstration, the gallery and a GPU run. Not part of the installed package."""
