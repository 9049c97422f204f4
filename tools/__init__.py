"""What only a clone of the repository needs: the demonstration, the gallery and a GPU run. Not part of the installed package."""
