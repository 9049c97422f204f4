"""A photo: pixels with their metadata, as `read_photo` gives it and `write_photo` takes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from .bands import Strips

if TYPE_CHECKING:
    from typing_extensions import TypeVar
else:
    from typing import TypeVar as _TypeVar

    def TypeVar(name: str, *, default: object, **options: Any) -> Any:
        """A type variable without its default, which Python knows from 3.13 on and type checkers always."""
        return _TypeVar(name, **options)


# Pixels as an array, and the type of a photo's pixels, which is an array by default.
Levels = NDArray[np.uint8 | np.uint16]
OtherT = TypeVar("OtherT", bound=Levels | Strips, default=Levels)
PixelsT = TypeVar("PixelsT", bound=Levels | Strips, default=Levels, covariant=True)


@dataclass(frozen=True, eq=False)
class Photo(Generic[PixelsT]):
    """Pixels with the metadata that belongs to them. `Photo` alone means an array, `Photo[Strips]` bands of rows."""

    pixels: PixelsT
    """(H, W, C) uint8 or uint16 with C = 1 gray, 2 gray + alpha, 3 RGB, 4 RGB + alpha: an array, or for writing also `Strips`."""
    exif: bytes | None = None
    """EXIF block."""
    icc: bytes | None = None
    """Colour profile of the pixels. None: sRGB."""
    dpi: tuple[float, float] | None = None
    """Horizontal and vertical resolution."""
    xmp: bytes | None = None
    """XMP packet."""
    iptc: bytes | None = None
    """IPTC-IIM records."""
    comment: bytes | None = None
    """Comment of a JPEG."""
    text: Mapping[str, str] = field(default_factory=dict)
    """Texts of a PNG by keyword."""
    coding: Mapping[str, bytes] = field(default_factory=dict)
    """Colours of a PNG without a profile: content of the chunks cICP, gAMA and cHRM."""

    def __post_init__(self) -> None:
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if isinstance(self.pixels, Strips) and len(shape) == 2:
            shape = (*shape, 1)
        if len(shape) != 3 or not 1 <= shape[2] <= 4 or 0 in shape or dtype not in (np.uint8, np.uint16):
            raise ImageError(
                f"a photo needs pixels (H, W, 1..4) of uint8 or uint16, got shape {shape} of {dtype}: "
                "add the channel axis or convert the type first"
            )

    def with_pixels(self, pixels: OtherT) -> Photo[OtherT]:
        """Other pixels, such as `Strips`, with this metadata."""
        return cast("Photo[OtherT]", dataclasses.replace(cast("Photo[Any]", self), pixels=pixels))

    def stripped(self) -> Photo[PixelsT]:
        """The same pixels without metadata, except for what their colours depend on: the profile, or a PNG's colour chunks."""
        return Photo(self.pixels, icc=self.icc, coding=self.coding)
