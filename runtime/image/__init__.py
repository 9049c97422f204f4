"""Pictures: arrays of pixels, bands of rows, EXIF. `read` reads them from files, `write` writes them."""
