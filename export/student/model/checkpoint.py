"""A student on disk: its weights as safetensors, and its shape and origin as JSON."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from export.student.model.network import Student, StudentConfig
from training.checkpoint import read_json, read_tensors, replace_folder

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


def save_student(
    student: Student, folder: str | Path, provenance: dict[str, Any] | None = None, *, half: bool = False
) -> None:
    """Write model.safetensors and config.json.

    student: whose weights and shape are written.
    folder: if it holds only those two files, or does not exist, it is replaced as a whole. Other files are kept, and
        the two are then moved in one after the other.
    provenance: JSON that describes how the student was made. Of an absolute path, which may name its user, only the end is written.
    half: round the weights to float16, which halves the file; they load as float32.

    Equal weights give an equal model.safetensors. Both files are first written to a temporary folder, so an error leaves an
    earlier student intact."""
    target = Path(folder).resolve()
    if target.is_file():
        raise FileExistsError(f"{target} is a file, expected a folder for the student; name another")
    dtype = torch.float16 if half else torch.float32
    state = {key: value.detach().to(dtype).contiguous() for key, value in student.state_dict().items()}
    document = {
        "model": "student",
        "config": student.config.to_dict(),
        "provenance": nameless(provenance or {}),
    }
    text = json.dumps(document, indent=2) + "\n"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        # a folder inside the temporary one, which other users cannot read
        fresh = Path(scratch) / target.name
        fresh.mkdir()
        try:
            # one entry alone: safetensors writes several in random order
            save_file(state, fresh / WEIGHTS_FILE, metadata={"model": "gdposr student"})
            (fresh / CONFIG_FILE).write_text(text)
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"could not write the student to {target} ({error}); its earlier content is unchanged. Free some space and try again"
            ) from error
        if target.is_dir() and {path.name for path in target.iterdir()} - {WEIGHTS_FILE, CONFIG_FILE}:
            for name in (WEIGHTS_FILE, CONFIG_FILE):
                (fresh / name).replace(target / name)
        else:
            replace_folder(fresh, target)


def nameless(value: Any) -> Any:
    """JSON in which absolute paths, wherever they stand, are shortened to their last name. A run's own config.json keeps them whole."""
    if isinstance(value, dict):
        return {key: nameless(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [nameless(below) for below in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def load_student(folder: str | Path) -> tuple[Student, dict[str, Any]]:
    """Load a checkpoint of `save_student`. Returns the student in eval mode and its provenance.

    Raises FileNotFoundError if a file is missing, and ValueError if it is damaged or belongs to another model."""
    source = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (source / name).is_file():
            raise FileNotFoundError(
                f"{source} is not a student checkpoint: {name} is missing (expected {CONFIG_FILE} and {WEIGHTS_FILE})"
            )
    document = read_json(source / CONFIG_FILE)
    if document.get("model") != "student":
        raise ValueError(
            f"{source / CONFIG_FILE} describes a {document.get('model')!r}, expected a 'student'"
        )
    student = Student(StudentConfig.from_dict(document.get("config", {})))
    try:
        student.load_state_dict(read_tensors(source / WEIGHTS_FILE))
    except RuntimeError as error:
        raise ValueError(
            f"{source / WEIGHTS_FILE} does not fit the shape in {CONFIG_FILE}: take both from one checkpoint"
        ) from error
    return student.eval(), document.get("provenance", {})
