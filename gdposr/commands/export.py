"""Write a bundle from a checkpoint. Needs the extra `export`: pip install "gdposr[export]"."""

from collections.abc import Sequence

from gdposr.forward import Stage, run_stage

HELP = "write a bundle from a checkpoint (needs the extra `export`)"

STAGE = Stage("export.cli", "export", "merge, convert, quantize and write a bundle")


def forward(argv: Sequence[str]) -> int:
    """Pass all arguments to the stage."""
    return run_stage(STAGE, argv)
