"""`make verify-arm`: the runtime on an emulated ARM64 Python, compared with this machine."""
