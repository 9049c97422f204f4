"""The pairs of blind studies that voters decided, with the crops they saw and the same crop of the HR picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.blind.scenes import NO_KIND, UPSCALED
from calibration.blind.score import A, B, choices, majority
from calibration.blind.study import Study, StudyError, key_digest, read_key
from calibration.blind.votes import read_votes
from calibration.measure.methods import bicubic
from calibration.measure.pairs import named_photos, read_rgb
from runtime.errors import ImageError

KEY_SUFFIX = ".key.json"


@dataclass(frozen=True)
class Folders:
    """Folders of a study's pictures."""

    a: Path | None = None
    """A's enlargements; None: the crops in the study's folder."""
    b: Path | None = None
    """B's enlargements; None: as for A."""
    hr: Path | None = None
    """HR pictures, named like the inputs or without the kind. An input without one has no truth."""
    lr: Path | None = None
    """Inputs; None: the crops in the study's folder, if it exists."""


@dataclass(frozen=True, eq=False)
class Judged:
    """One pair with a winner. Crops are (H, W, 3) uint8 at HR size."""

    study: str
    """Name of the study's folder."""
    number: int
    """Number of the pair in the study, from 1."""
    kind: str
    """Kind of input, as in the key."""
    a_won: bool
    """Whether most voters chose A."""
    usual_won: bool
    """Whether the winner is the one with more wins in the whole study."""
    a: np.ndarray
    """A's crop."""
    b: np.ndarray
    """B's crop."""
    truth: np.ndarray | None
    """The HR picture's crop; None: no HR picture."""
    enlarged: np.ndarray | None
    """The input by bicubic; None: no input at hand."""


@dataclass(frozen=True)
class Votes:
    """The result of a study: the majority of its voters, pair by pair."""

    study: str
    """Name of the study's folder."""
    names: tuple[str, str]
    """Names of A and B."""
    voters: int
    """How many voted."""
    a_wins: int
    """Pairs in which most chose A."""
    b_wins: int
    """Pairs in which most chose B."""
    ties: int
    """Pairs without a winner."""
    without_truth: dict[str, int]
    """Kind of input -> decided pairs without an HR picture."""

    @property
    def a_usual(self) -> bool:
        """Whether A won at least as many pairs as B."""
        return self.a_wins >= self.b_wins


def read_judged(key_file: Path, votes: Sequence[Path], folders: Folders) -> tuple[Votes, list[Judged]]:
    """The result of a study and its decided pairs. StudyError, ImageError: a file is missing, damaged, or does not fit the others."""
    entries, study = _open(key_file)
    key = read_key(key_file, study)
    ballots = [read_votes(path, study) for path in votes]
    winners = [majority(chosen) for chosen in zip(*(choices(ballot, key) for ballot in ballots), strict=True)]
    a_wins, b_wins = winners.count(A), winners.count(B)
    pictures = _Pictures(study, folders)
    judged = []
    for entry, winner in zip(entries, winners, strict=True):
        if winner in (A, B):
            a, b = pictures.crops(entry)
            usual = (winner == A) is (a_wins >= b_wins)
            truth, enlarged = pictures.truth(entry), pictures.enlarged(entry)
            pair = Judged(
                study.folder.name, entry["pair"], entry["kind"], winner == A, usual, a, b, truth, enlarged
            )
            judged.append(pair)
    kinds = [pair.kind for pair in judged if pair.truth is None]
    without = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    ties = len(winners) - len(judged)
    return Votes(study.folder.name, key.names, len(ballots), a_wins, b_wins, ties, without), judged


def outputs(folder: Path) -> dict[str, Path]:
    """Pictures by the name of their input: `photo_x4_seed0.png`, as written by `gdposr upscale`, belongs to `photo`."""
    pictures = named_photos(folder)
    found = dict(pictures)
    for name, path in pictures.items():
        own = UPSCALED.sub("", name)
        if own != name and own in found:
            raise ImageError(f"{path} and {found[own]} are both of {own}: keep one of them")
        found[own] = path
    return found


class _Pictures:
    """The crops of a study's pairs, by the entries of its key."""

    def __init__(self, study: Study, folders: Folders) -> None:
        if (folders.a is None) != (folders.b is None):
            raise StudyError(f"{study.folder}: expected the folders of A and B, got one: give both or none")
        if folders.a is None and not (study.folder / "pairs").is_dir():
            raise StudyError(
                f"{study.folder}: expected the study beside its key, there is none: give its pictures with --a and --b"
            )
        self._study = study
        self._outputs = [outputs(folder) for folder in (folders.a, folders.b) if folder is not None]
        self._hr = named_photos(folders.hr) if folders.hr else {}
        self._lr = named_photos(folders.lr) if folders.lr else {}

    def crops(self, entry: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Crops of A and B."""
        if self._outputs:
            a, b = (_cut(_of(photos, entry), entry, entry["scale"]) for photos in self._outputs)
            return a, b
        left, right = (read_rgb(self._study.picture(entry["pair"], side)) for side in ("left", "right"))
        return (left, right) if entry["a"] == "left" else (right, left)

    def truth(self, entry: Mapping[str, Any]) -> np.ndarray | None:
        path = _find(self._hr, entry)
        if path is None:
            return None
        size = read_rgb(path).shape[:2]
        if self._outputs:
            expected = read_rgb(_of(self._outputs[0], entry)).shape[:2]
        elif self._lr:
            height, width = read_rgb(_of(self._lr, entry)).shape[:2]
            expected = (height * entry["scale"], width * entry["scale"])
        else:
            expected = size
        if size != expected:
            raise ImageError(
                f"{path}: expected an HR picture of {expected[1]}x{expected[0]} like the enlargements, got {size[1]}x{size[0]}: crop it"
            )
        return _cut(path, entry, entry["scale"])

    def enlarged(self, entry: Mapping[str, Any]) -> np.ndarray | None:
        if self._lr:
            source = _cut(_of(self._lr, entry), entry, 1)
        else:
            path = self._study.picture(entry["pair"], "input")
            if not path.is_file():
                return None
            source = read_rgb(path)
        return bicubic(source, entry["scale"])


def _open(key_file: Path) -> tuple[list[dict[str, Any]], Study]:
    """The entries of the key, and the study as far as the key describes it; its folder may be missing."""
    if not key_file.name.endswith(KEY_SUFFIX):
        raise StudyError(f"{key_file}: expected STUDY{KEY_SUFFIX}, as gdposr blind make names it: rename it")
    folder = key_file.with_name(key_file.name.removesuffix(KEY_SUFFIX))
    try:
        value = json.loads(key_file.read_text(encoding="utf-8"))
        entries = value["pairs"]
        numbers = [entry["pair"] for entry in entries]
        for entry in entries:
            y, x, size = (entry["crop"][name] for name in ("y", "x", "size"))
            if min(y, x) < 0 or min(size, entry["scale"]) < 1 or entry["a"] not in ("left", "right"):
                raise ValueError
            if not (isinstance(entry["photo"], str) and isinstance(entry["kind"], str)):
                raise ValueError
        if not {"a", "b"} <= set(value["names"]):
            raise ValueError
        if numbers != list(range(1, len(entries) + 1)) or not entries:
            raise ValueError
    except OSError as error:
        raise StudyError(f"{key_file}: cannot be read ({error.strerror}): check the path") from None
    except (KeyError, TypeError, ValueError):
        raise StudyError(
            f"{key_file}: expected the key of a study, with names, and kind, photo, crop, scale and side of pairs numbered from 1, "
            "got something else: copy it again"
        ) from None
    return entries, Study(folder, len(entries), "", key_digest(value))


def _find(photos: Mapping[str, Path], entry: Mapping[str, Any]) -> Path | None:
    """The photo of that kind and name, or of that name alone: one HR picture may be the truth of several kinds."""
    photo = entry["photo"]
    return photos.get(photo if entry["kind"] == NO_KIND else f"{entry['kind']}/{photo}", photos.get(photo))


def _of(photos: Mapping[str, Path], entry: Mapping[str, Any]) -> Path:
    path = _find(photos, entry)
    if path is None:
        raise ImageError(
            f"pair {entry['pair']}: expected a picture of {entry['photo']} ({entry['kind']}), there is none: give the folder that the "
            "study was made from"
        )
    return path


def _cut(path: Path, entry: Mapping[str, Any], scale: int) -> np.ndarray:
    y, x, side = (scale * entry["crop"][name] for name in ("y", "x", "size"))
    crop = read_rgb(path)[y : y + side, x : x + side]
    if crop.shape[:2] != (side, side):
        raise ImageError(
            f"{path}: expected a picture that has {side}x{side} pixels at column {x}, row {y}, got a smaller one: give the folder that "
            "the study was made from"
        )
    return crop
