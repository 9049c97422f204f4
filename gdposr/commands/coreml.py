"""Look at a Core ML package and verify it, on any machine. Needs the extra `coreml`: pip install "gdposr[export,coreml]"."""

from collections.abc import Sequence

from gdposr.forward import Stage, run_stage

HELP = "lint and verify Core ML packages (needs the extra `coreml`)"

STAGE = Stage("export.mil.cli", "export,coreml", "every op of a package, and its result against a bundle")


def forward(argv: Sequence[str]) -> int:
    """Pass all arguments to the stage."""
    return run_stage(STAGE, argv)
