"""A study on disk: a folder for the voters, and beside it the key, which tells which side is which.

    STUDY/study.json           number of pairs, question, version, digest of the key
    STUDY/pairs/001.png        the pair as one picture, for looking at it without a page
    STUDY/pairs/001_left.png   and _right.png, _input.png: its three crops, for the page
    STUDY.key.json             names, kinds, photos, places, sides, seed; not for voters

Nothing inside the folder tells A from B: it has no names, pictures have no metadata, all files have one time, the order is random.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from calibration.blind.pairs import Pair
from calibration.blind.sheet import pair_sheet
from calibration.measure.pairs import read_rgb
from runtime.errors import GdposrError
from runtime.files import atomic_file, temporary_beside

# Version of study.json and of the key.
FORMAT = 1
QUESTION = "Which would a person keep?"
# Time of every file of a study: 2000-01-01 UTC.
_TIME = 946_684_800
_PARTS = ("input", "left", "right")


class StudyError(GdposrError):
    """A study, its key or a file of votes is missing, malformed, or belongs to another study."""


@dataclass(frozen=True)
class Study:
    """The part of a study that a voter may see."""

    folder: Path
    """The folder of the study."""
    pairs: int
    """Number of pairs, which are numbered from 1."""
    question: str
    """The question about each pair."""
    digest: str
    """SHA-256 of the key, in hex; names the study in files of votes."""

    def picture(self, number: int, part: str) -> Path:
        """The crop of a pair. part: "input", "left" or "right"."""
        return self.folder / "pairs" / f"{_stem(number, self.pairs)}_{part}.png"


@dataclass(frozen=True)
class Key:
    """The part of a study that a voter must not see. Pair k is at index k - 1."""

    names: tuple[str, str]
    """Names of A and B."""
    kinds: tuple[str, ...]
    """Kind of input of each pair."""
    a_left: tuple[bool, ...]
    """Whether A is on the left."""


def key_path(study: Path) -> Path:
    """Default path of a study's key: beside the folder, never in it."""
    folder = Path(os.path.abspath(study))
    return folder.with_name(f"{folder.name}.key.json")


def write_study(
    out: Path,
    pairs: Sequence[Pair],
    *,
    crop: int,
    names: tuple[str, str],
    seed: int,
    command: str,
    version: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Study:
    """Write the folder and its key. Neither may exist. The folder appears complete or not at all.

    out: folder of the study; the key goes beside it.
    pairs: in the order in which they are shown.
    crop: side in pixels of the input.
    names: of A and B.
    seed, command, version: how the study was made, for the key.
    progress: called with pairs done and in all.
    """
    # check that the target does not exist
    out, key_file = Path(os.path.abspath(out)), key_path(out)
    for path in (out, key_file):
        if path.exists():
            raise StudyError(
                f"{path}: expected a new study, got one that is there: choose another --out or remove it"
            )
    # key and study: the study has the key's hash, not its answers
    key = {
        "format": FORMAT,
        "version": version,
        "command": command,
        "seed": seed,
        "names": {"a": names[0], "b": names[1]},
        "pairs": [_entry(number, pair, crop) for number, pair in enumerate(pairs, 1)],
    }
    study = {
        "format": FORMAT,
        "version": version,
        "pairs": len(pairs),
        "question": QUESTION,
        "key_sha256": key_digest(key),
    }
    # write beside the place, then put the key and the folder into theirs
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(out)
    try:
        (temporary / "pairs").mkdir(parents=True)
        for number, pair in enumerate(pairs, 1):
            _write_pair(temporary / "pairs" / _stem(number, len(pairs)), number, pair, crop)
            progress(number, len(pairs))
        (temporary / "study.json").write_text(_text(study), encoding="utf-8")
        for path in (*temporary.rglob("*"), temporary):
            os.utime(path, (_TIME, _TIME))
        with atomic_file(key_file) as stream:
            stream.write(_text(key).encode())
        os.rename(temporary, out)
    except OSError as error:
        raise StudyError(
            f"{out}: cannot be written ({error.strerror or error}): check folder and free space"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return read_study(out)


def read_study(folder: Path) -> Study:
    """A study in a folder. StudyError if there is none or its description is damaged."""
    value = _json(folder / "study.json", "a study of `gdposr blind make`")
    try:
        pairs, question, digest = value["pairs"], value["question"], value["key_sha256"]
        if not (type(pairs) is int and pairs > 0 and isinstance(question, str)):
            raise ValueError
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise StudyError(
            f"{folder / 'study.json'}: expected pairs, question and key_sha256, got something else: copy the study again"
        ) from None
    return Study(folder, pairs, question, digest)


def read_key(path: Path, study: Study) -> Key:
    """A study's key. StudyError for a key that is missing, damaged, or of another study: its digest must be that in study.json."""
    value = _json(path, "the key of the study (or --key FILE where it lies elsewhere)")
    found = key_digest(value)
    if found != study.digest:
        raise StudyError(
            f"{path}: expected the key of {study.folder} (digest {study.digest[:12]}), got another or a changed one "
            f"(digest {found[:12]}): give the key that was written with this study"
        )
    entries = value["pairs"]
    return Key(
        (value["names"]["a"], value["names"]["b"]),
        tuple(entry["kind"] for entry in entries),
        tuple(entry["a"] == "left" for entry in entries),
    )


def key_digest(key: Any) -> str:
    """SHA-256 in hex of a key's content. It does not depend on the layout of the file."""
    text = json.dumps(key, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _entry(number: int, pair: Pair, crop: int) -> dict[str, Any]:
    return {
        "pair": number,
        "kind": pair.scene.kind,
        "photo": pair.scene.photo,
        "crop": {"y": pair.y, "x": pair.x, "size": crop},
        "scale": pair.scene.scale,
        "a": "left" if pair.a_left else "right",
    }


def _write_pair(stem: Path, number: int, pair: Pair, crop: int) -> None:
    scene, scale = pair.scene, pair.scene.scale
    source = read_rgb(scene.lr)[pair.y : pair.y + crop, pair.x : pair.x + crop]
    rows = slice(pair.y * scale, (pair.y + crop) * scale)
    columns = slice(pair.x * scale, (pair.x + crop) * scale)
    left, right = (
        read_rgb(path)[rows, columns] for path in ((scene.a, scene.b) if pair.a_left else (scene.b, scene.a))
    )
    _save(stem.with_name(f"{stem.name}.png"), pair_sheet(number, source, left, right))
    for part, pixels in zip(_PARTS, (source, left, right), strict=True):
        _save(stem.with_name(f"{stem.name}_{part}.png"), pixels)


def _save(path: Path, pixels: np.ndarray) -> None:
    """Write a PNG file without text, time and colour profile."""
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    path.write_bytes(buffer.getvalue())


def _stem(number: int, pairs: int) -> str:
    return f"{number:0{max(3, len(str(pairs)))}}"


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _json(path: Path, expected: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"{path}: expected {expected}, there is no such file: check the path") from None
    except OSError as error:
        raise StudyError(
            f"{path}: cannot be read ({error.strerror}): check the path and its permissions"
        ) from None
    except ValueError:  # not UTF-8, not JSON
        raise StudyError(
            f"{path}: expected JSON, got something else: copy it again from its source"
        ) from None
