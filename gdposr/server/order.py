"""What one request asks for."""

from dataclasses import dataclass
from typing import Final

# File suffix of each format that a request can name.
SUFFIXES: Final = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


@dataclass(frozen=True)
class Order:
    """The pictures to make. The fields mean what the options of `gdposr upscale` mean."""

    seed: int
    """Of the noise."""
    scale: float
    """In (0, the model's scale]."""
    samples: int = 1
    """Versions 0, 1, ... of the seed."""
    only: int | None = None
    """This one version. None: all `samples`."""
    format: str = "png"
    """One of SUFFIXES."""
    quality: int = 95
    """1 to 100, for formats with losses."""
    strip: bool = False
    """Whether the pictures get no metadata, not even the notes on how they were made."""

    @property
    def numbers(self) -> list[int]:
        """The versions that are computed."""
        return list(range(self.samples)) if self.only is None else [self.only]

    def name(self, number: int) -> str:
        """File name of a version, as the command would name it for photo.jpg."""
        alone = self.samples == 1 and self.only is None
        part = "" if alone else f"_s{number}"
        return f"photo_x{self.scale:g}_seed{self.seed}{part}{SUFFIXES[self.format]}"
