"""One photo of a run: what to make from it, which files its pictures are, and what came of it."""

import os
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdposr import __version__

if TYPE_CHECKING:
    from runtime.bundle.reader import Bundle


def stem_of(name: str, scale: float, seed: int) -> str:
    """The part of the names of a photo's pictures that all samples share: "a_x4_seed0" for a.jpg."""
    return f"{name}_x{scale:g}_seed{seed}"


def sample_parts(samples: int, only: int | None) -> dict[int, str]:
    """The samples that are computed, each with its part of a picture's name: {0: ""}, or {0: "_s0", 1: "_s1"}.

    only: this sample alone. None: samples 0, 1, ..., so many as `samples`.
    """
    if only is None and samples == 1:
        return {0: ""}
    return {number: f"_s{number}" for number in (range(samples) if only is None else [only])}


@dataclass(frozen=True)
class Options:
    """What to make from each photo."""

    seed: int
    """Seed of the noise."""
    samples: int
    """Number of samples of the seed, from 0, unless `only` names one."""
    select: str
    """Which pictures to keep: all, sheet or best."""
    scale: float
    """Height and width of the output over those of the photo."""
    quality: int
    """Quality of formats with losses, 1 to 100."""
    digest: str
    """Digest of the bundle."""
    only: int | None = None
    """Number of the one sample to make, with the name that it has among many. None: samples 0, 1, ..."""
    max_pixels: int | None = None
    """Limit of an input. None: the reader's own limit."""
    compare: bool = False
    """Whether to write a page beside each output that shows before and after."""
    strip: bool = False
    """Whether outputs get no metadata, not even the notes on how they were made."""

    @property
    def numbers(self) -> list[int]:
        """The samples that are computed."""
        return list(sample_parts(self.samples, self.only))

    @property
    def parts(self) -> list[str]:
        """Name parts that tell outputs of one photo apart: one per sample, or one for a sheet."""
        return ["_sheet"] if self.select == "sheet" else list(sample_parts(self.samples, self.only).values())

    def part(self, number: int | None) -> str:
        """The name part of a sample. None: of a sheet."""
        return "_sheet" if number is None else sample_parts(self.samples, self.only)[number]

    @property
    def pictures(self) -> int:
        """Files written per photo."""
        return len(self.numbers) if self.select == "all" else 1

    def described(self, bundle: "Bundle", temperature: float) -> dict[str, Any]:
        """The request's fields in a report.

        bundle: the model.
        temperature: of the noise."""
        from runtime.image.grain import NAME

        return {
            "version": __version__,
            "bundle": {"name": bundle.manifest.name, "path": str(bundle.path), "digest": bundle.digest},
            "seed": self.seed,
            "temperature": temperature,
            "samples": len(self.numbers),
            "sample": self.only,  # null: all from 0
            "select": self.select,
            "score": NAME if self.select == "best" else None,
            "scale": self.scale,
        }


@dataclass
class Outcome:
    """The result of one photo. It is filled in during the work, so that an interrupted run can report it."""

    input: str
    """Path of the photo, or its label in messages."""
    status: str = "unfinished"
    """Later "ok", "skipped", "own" (written by gdposr itself, so left out) or "failed"."""
    outputs: list[dict[str, Any]] = field(default_factory=list)
    """The report's entry of each picture: path, sample, width, height, and fields that options add."""
    notes: list[str] = field(default_factory=list)
    """Losses and replacements, such as 16 bits in a JPEG."""
    error: str | None = None
    """Why it failed, in one line. None: it did not."""
    seconds: float = 0.0
    """Time from its start to its last file."""


@dataclass
class Task:
    """One photo of a run: its source, its outputs, and its progress."""

    source: Path
    """Path of the photo."""
    folder: Path
    """Folder of its pictures."""
    stem: str
    """The part of its pictures' names that all samples share."""
    exact: Path | None = None
    """The one output file the user named; None: names are made from `stem`."""
    pixels: int | None = None
    """Number of pixels in its header. None: not known."""
    begin: float = 0.0
    """Time at its start in seconds of time.perf_counter, as `end`. 0: not begun in this run."""
    end: float = 0.0
    """Time of its last finished step; 0: no step has ended."""
    writes: list[tuple[Future[None], dict[str, Any]]] = field(default_factory=list)
    """Each write with its entry for the report."""
    error: Exception | None = None
    """Why it failed. Set before the run if it cannot be read, such as a folder without permission."""
    labels: dict[str, str] = field(default_factory=dict)
    """What messages say instead of a path, such as "stdin"."""
    computed: bool = False
    """Whether all its pictures are computed. Some may still be being written."""

    def __post_init__(self) -> None:
        self.outcome = Outcome(str(self.source))

    def with_labels(self, text: str) -> str:
        """A message with labels in place of paths."""
        for path, label in self.labels.items():
            text = text.replace(path, label)
        return text

    def target(self, part: str = "") -> Path:
        """The output file. `part` tells pictures of one photo apart, for example "_s2" or "_sheet"."""
        return self.exact if self.exact is not None else self.folder / f"{self.stem}{part}.png"

    def finished(self, options: Options) -> list[str]:
        """The name parts of the existing outputs if they are complete, otherwise empty."""
        there = [part for part in options.parts if os.path.isfile(self.target(part))]
        return there if len(there) >= options.pictures else []
