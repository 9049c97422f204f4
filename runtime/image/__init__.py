"""What a picture is: arrays of pixels, bands of rows, EXIF. `read` and `write` are the ways from and to a file."""
