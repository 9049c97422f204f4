"""Write a trained one-step model as one self-contained folder, with adapters merged and optionally in half precision.

    gdposr train merge --model RUN --out FOLDER [--half]

A run of preference tuning contains only an adapter and refers to the run before it. A shipped model must not depend on that run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from runtime.text import print_error
from training.model.loading import MODEL_FILE, find_model, load_model, read_model_file
from training.model.saving import save_merged


def merge_run(source: str | Path, out: Path, *, half: bool = False, base: str | Path | None = None) -> Path:
    """Merge a model into a folder; returns out. Its model.json keeps the provenance of every stage.

    source: anything that `load_model` reads.
    out: folder to write.
    half: store the weights as float16. `load_model` still computes in float32.
    base: source of the parts that it lacks."""
    model = load_model(source, base=base)
    dtype = torch.float16 if half else torch.float32
    save_merged(model, out, {"stages": lineage(source)}, dtype=dtype)
    return out


def lineage(source: str | Path) -> list[dict[str, Any]]:
    """Provenance of every stage behind a model, latest first, as far as the earlier folders exist. Folders are given by name only."""
    stages: list[dict[str, Any]] = []
    seen: set[Path] = set()
    place: str | Path | None = source
    while place is not None:
        try:
            folder = find_model(place).resolve()
        except (FileNotFoundError, ValueError):
            break
        if folder in seen or not (folder / MODEL_FILE).is_file():
            break
        seen.add(folder)
        document = read_model_file(folder)
        provenance = dict(document.get("provenance", {}))
        if "stages" in provenance:  # merged before
            return stages + list(provenance["stages"])
        stages.append(_nameless(provenance))
        place = _below(document, provenance, folder)
    return stages


def _below(document: Mapping[str, Any], provenance: Mapping[str, Any], folder: Path) -> str | Path | None:
    """The model from which this one was trained."""
    if "base" in document:
        base = str(document["base"])
        return folder / base if base.startswith(".") else base
    name = provenance.get("base")
    if name is None:
        return None
    beside = folder.parent.parent / Path(name).name  # runs are in one folder, which may have been moved
    return beside if beside.is_dir() else str(name)


def _nameless(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance without local paths."""
    paths = {key: Path(provenance[key]).name for key in ("base", "data") if provenance.get(key)}
    return {**provenance, **paths}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 on success, 2 if the model cannot be read or written."""
    parser = argparse.ArgumentParser(
        prog="gdposr train merge",
        description="Write a trained one-step model as one folder with merged adapters, to ship it or to train it further.",
    )
    parser.add_argument("--model", required=True, metavar="RUN", help="training run, folder or hub name")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new or empty folder")
    parser.add_argument("--base", metavar="BASE", help="source of text encoder and scheduler if RUN has none")
    parser.add_argument("--half", action="store_true", help="store float16 weights, half the bytes")
    args = parser.parse_args(argv)
    try:
        merge_run(args.model, args.out, half=args.half, base=args.base)
    except (ValueError, OSError) as error:
        print_error(error)
        return 2
    print(f"model written to {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
