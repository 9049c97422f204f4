"""Limits of the server for apps."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits on requests. All but the last two are options of `gdposr serve --api`."""

    max_bytes: int = 32 << 20
    """Largest file of a photo in bytes."""
    max_pixels: int = 4_000_000
    """Largest photo in pixels."""
    max_samples: int = 8
    """Versions in one answer."""
    timeout: float = 60.0
    """Seconds from the whole photo to the finished pictures, the time in the queue included."""
    transfer_timeout: float = 120.0
    """Seconds for receiving a photo, and again for sending the answer."""
    waiting: int = 16
    """Photos in the queue, besides those at work."""
    uploads: int = 64
    """Photos that may be received at once. Each is a temporary file."""
    connections: int = 400
    """Most connections at once. Above it every request gets 503. It stays below the usual limit of 1024 open files."""
