"""What one request wants of its photo."""

from dataclasses import dataclass
from typing import Final

# The suffix by the name of a format in a request.
SUFFIXES: Final = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


@dataclass(frozen=True)
class Order:
    """The pictures to make, as the options of `gdposr upscale` of the same names say it."""

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
    """Whether pictures go without metadata, the notes on how they were made included."""

    @property
    def numbers(self) -> list[int]:
        """The versions that are computed."""
        return list(range(self.samples)) if self.only is None else [self.only]

    def name(self, number: int) -> str:
        """The file of a version, as the command names the one of a photo.jpg."""
        alone = self.samples == 1 and self.only is None
        part = "" if alone else f"_s{number}"
        return f"photo_x{self.scale:g}_seed{self.seed}{part}{SUFFIXES[self.format]}"
