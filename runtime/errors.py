"""Exceptions that a caller may catch. Each message says what was expected, what it got, and what to do."""


class GdposrError(Exception):
    """Base of every error this package raises on purpose."""


class BundleError(GdposrError):
    """A model bundle is missing, malformed or altered, or does not hold what was asked for."""


class ImageError(GdposrError):
    """A picture cannot be read, written or processed."""


class DeviceError(GdposrError):
    """A device is unknown, missing, or computes something else than it should."""


class OutOfMemory(DeviceError):
    """A device has too little memory for one call."""


class SettingError(GdposrError, ValueError):
    """An argument lies outside its stated range, for example a negative seed or a scale above 4."""
