"""Checks of values from outside: the entries of a manifest, and numbers that a caller passes."""

from __future__ import annotations

import dataclasses
import operator
import re
from typing import Any, Final

from .errors import BundleError, SettingError

# Levels of objects and lists in a manifest. Limited because code that walks them is recursive.
MAX_DEPTH: Final = 32
# Characters of a key.
MAX_KEY: Final = 256
# Characters that control a terminal: control characters, lone surrogates, changes of the writing direction.
_OBEYED = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Plain:
    """A dataclass that can be written as JSON."""

    def to_dict(self) -> dict[str, Any]:
        """The same values as dictionaries, lists and scalars."""
        assert dataclasses.is_dataclass(self)
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def setting(name: str, value: Any, low: int, high: int | None = None) -> int:
    """A caller's whole number as int. SettingError unless it lies within its bounds.

    name: of the setting, for the message.
    value: the caller's.
    low: the least that is allowed.
    high: the most that is allowed. None: no upper bound.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise SettingError(f"{name}: expected a whole number, got {value!r}") from None
    if isinstance(value, bool) or number < low or (high is not None and number > high):
        wanted = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise SettingError(
            f"{name}: expected a whole number {wanted}, got {value!r}; choose one in that range"
        )
    return number


def fail(where: str, expected: str, got: object) -> BundleError:
    """The error of a manifest entry."""
    return BundleError(
        f"manifest: {where}: expected {expected}, got {shortened(got)}; export the bundle again"
    )


def shortened(value: object) -> str:
    """A value from outside for a message: at most 80 characters, with control characters escaped by repr."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def check_json(value: object) -> None:
    """ValueError unless a parsed manifest is safe to print, to write as JSON again and to walk recursively.

    Texts may hold tabs and line breaks, keys may not. Numbers must be finite and fit 64 bits.
    """
    waiting: list[tuple[object, int]] = [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels of objects and lists")
        if isinstance(item, str):
            if _OBEYED.search(item.replace("\n", "").replace("\t", "")):
                raise ValueError(f"a text with control characters, {shortened(item)}")
        elif isinstance(item, int | float) and not -(2**63) <= item < 2**64:  # infinite ones too
            raise ValueError("a number too large for 64 bits")
        elif isinstance(item, list):
            waiting.extend((part, depth + 1) for part in item)
        elif isinstance(item, dict):
            for key, part in item.items():
                if len(key) > MAX_KEY or _OBEYED.search(key):
                    raise ValueError(f"a key that is long or has control characters, {shortened(key)}")
                waiting.append((part, depth + 1))


def check_whole(where: str, value: object, low: int, high: int | None = None) -> None:
    """value must be an integer within its bounds. true and false do not count as integers.

    where: its place in the manifest, for the message.
    value: as it was read.
    low: the least that is allowed.
    high: the most that is allowed. None: no upper bound.
    """
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and value >= low
        and (high is None or value <= high)
    ):
        return
    wanted = f"a whole number of at least {low}" + ("" if high is None else f", at most {high}")
    raise fail(where, wanted, value)


def check_real(where: str, value: object) -> float:
    """value must be a finite number."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not abs(value) < 1e300:  # type: ignore[arg-type]  # NaN fails the comparison
        raise fail(where, "a finite number", value)
    return float(value)  # type: ignore[arg-type]


def check_text(where: str, value: object) -> None:
    """value must be a short text without control characters."""
    if not isinstance(value, str) or not 1 <= len(value) <= 256 or _OBEYED.search(value):
        raise fail(where, "a text of 1 to 256 characters, none of them a control character", value)


def check_mapping(where: str, value: object) -> dict[str, Any]:
    """value must be a JSON object."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise fail(where, "an object with text keys", value)
    return value


def arguments(cls: type, where: str, data: object) -> dict[str, Any]:
    """A JSON object as arguments of the dataclass cls. BundleError for an unknown key, or a missing one that has no default."""
    values = check_mapping(where, data)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise BundleError(
            f"manifest: {where}: unknown key {shortened(unknown[0])}, expected some of {sorted(fields)}; correct the spelling"
        )
    required = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise BundleError(f"manifest: {where}: key {missing[0]!r} is missing; export the bundle again")
    return dict(values)


def _plain(value: Any) -> Any:
    if isinstance(value, Plain):
        return value.to_dict()
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
