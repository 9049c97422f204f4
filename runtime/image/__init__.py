"""Pictures in and out: files of every format, metadata, arrays of pixels."""
