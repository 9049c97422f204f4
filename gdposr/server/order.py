"""What one request asks for."""

from dataclasses import dataclass
from typing import Final

from gdposr.batch.task import sample_parts, stem_of

# File suffix of each format that a request can name.
SUFFIXES: Final = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


@dataclass(frozen=True)
class Order:
    """The pictures to make. The fields mean what the options of `gdposr upscale` mean."""

    seed: int
    """Seed of the noise."""
    scale: float
    """Height and width of a picture over those of the photo, in (0, the model's scale]."""
    samples: int = 1
    """Versions 0, 1, ... of the seed."""
    only: int | None = None
    """Number of the one version to make. None: all `samples`."""
    temperature: float = 1.0
    """Standard deviation of the noise, from 0 to the runtime's `HOTTEST`."""
    format: str = "png"
    """One of SUFFIXES."""
    quality: int = 95
    """Quality of formats with losses, 1 to 100."""
    strip: bool = False
    """Whether the pictures get no metadata, not even the notes on how they were made."""

    @property
    def numbers(self) -> list[int]:
        """The versions that are computed."""
        return list(sample_parts(self.samples, self.only))

    def name(self, number: int) -> str:
        """File name of a version, as the command would name it for photo.jpg."""
        part = sample_parts(self.samples, self.only)[number]
        return f"{stem_of('photo', self.scale, self.seed)}{part}{SUFFIXES[self.format]}"
