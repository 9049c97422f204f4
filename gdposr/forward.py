"""Passes a command line to a stage with its own parser, and names the extra if its packages are missing."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from gdposr.console import UsageError

# Our own packages: if one of them cannot be imported, no extra is missing.
STAGE_PACKAGES = ("runtime", "training", "calibration", "export", "gdposr")
# Packages that only some work of a stage needs, and the extra that installs them.
EXTRA_OF = {
    "coremltools": "export,coreml",
    "diffusers": "export,train",
    "peft": "export,train",
    "transformers": "export,train",
}


def check_report(path: object) -> None:
    """UsageError, before the long measurement, if a report is wanted (path is not None) and the extra `report` is missing."""
    if path is not None:
        require(("matplotlib", "jinja2"), "report", "--report")


def require(packages: Sequence[str], extra: str, what: str) -> None:
    """UsageError, which begins with what was asked for, unless these packages of an extra are installed."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise UsageError(
            f"{what} needs {' and '.join(missing)}, not installed for {sys.executable}: "
            f'pip install "gdposr[{extra}]"'
        )


def explained(error: ModuleNotFoundError, extra: str, what: str) -> UsageError:
    """Turns a failed import into a UsageError that names the extra to install. Re-raises it if the missing module is ours."""
    missing = (error.name or "").partition(".")[0]
    if not missing or missing in STAGE_PACKAGES:
        raise error
    return UsageError(
        f"{what} needs the package {missing!r}, which is not installed for {sys.executable}: "
        f'pip install "gdposr[{extra}]"'
    )


@dataclass(frozen=True)
class Stage:
    """A command line with its own parser, in another package."""

    module: str
    """Name of the module; it has main(argv) -> int."""
    extra: str
    """The optional dependencies that it needs."""
    about: str
    """Description for the help text."""


def run_stage(stage: Stage, argv: Sequence[str]) -> int:
    """Run the main of `stage.module` with argv. A missing package becomes a UsageError with the remedy."""
    try:
        return int(import_module(stage.module).main(list(argv)))
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get((error.name or "").partition(".")[0], stage.extra)
        raise explained(error, extra, "this") from error
