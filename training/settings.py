"""Settings of a run: frozen dataclasses that are stored as JSON and changed by `key=value` on a command line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, ClassVar, Protocol, TypeVar


class Settings(Protocol):
    """Any dataclass whose fields all have defaults. A field may itself be such a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


T = TypeVar("T", bound=Settings)


def to_dict(settings: Settings) -> dict[str, Any]:
    return asdict(settings)


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """Inverse of `to_dict`, also after JSON (lists become tuples). Raises ValueError for an unknown key or a value of
    the wrong type."""
    defaults = cls()
    unknown = sorted(set(values) - set(cls.__dataclass_fields__))
    if unknown:
        known = ", ".join(cls.__dataclass_fields__)
        raise ValueError(f"unknown setting {', '.join(unknown)}; known: {known}")
    return cls(**{name: _like(getattr(defaults, name), value, name) for name, value in values.items()})


def with_settings(settings: T, changes: Sequence[str]) -> T:
    """Apply key=value changes. A dot addresses a nested setting (`student.width=64`). Values are parsed as JSON, else taken as text."""
    values = to_dict(settings)
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"expected a setting as key=value, got {change!r}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        *path, last = key.split(".")
        place = values
        for name in path:
            inside = place.get(name)
            if not isinstance(inside, dict):
                raise ValueError(
                    f"unknown setting {key}: {name!r} has no settings inside; known: {', '.join(place)}"
                )
            place = inside
        place[last] = value
    return from_dict(type(settings), values)


def differences(a: Mapping[str, Any], b: Mapping[str, Any], inside: str = "") -> list[str]:
    """Settings that differ, as "key: a -> b", compared as JSON. Nested keys are joined with dots. inside: prefix of the keys."""
    a, b = json.loads(json.dumps(dict(a))), json.loads(json.dumps(dict(b)))
    found = []
    for key in sorted({*a, *b}):
        before, after = a.get(key), b.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{inside}{key}.")
        elif before != after:
            found.append(f"{inside}{key}: {before} -> {after}")
    return found


def _like(default: Any, value: Any, name: str) -> Any:
    """The value in the type of the default: a list becomes a tuple, a mapping a dataclass, a whole number a float."""
    if is_dataclass(default):
        kind: Any = type(default)
        if not isinstance(value, kind | Mapping):
            raise ValueError(f"{name} expects settings of its own, such as {name}.key=value, got {value!r}")
        return value if isinstance(value, kind) else from_dict(kind, value)
    if isinstance(default, tuple) and isinstance(value, list | tuple | str):
        items = value.split(",") if isinstance(value, str) else value
        return tuple(_like(default[0], item, name) for item in items) if default else tuple(items)
    if isinstance(default, bool) or default is None:
        fits = isinstance(value, bool) if default is not None else True
    elif isinstance(default, float):
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        value = float(value) if fits else value
    elif isinstance(default, int):
        fits = isinstance(value, int) and not isinstance(value, bool)
    else:
        fits = isinstance(value, type(default))
    if not fits:
        kinds = {
            bool: "true or false",
            float: "a number",
            int: "a whole number",
            str: "a text",
            tuple: "a list",
        }
        raise ValueError(f"{name} expects {kinds.get(type(default), type(default).__name__)}, got {value!r}")
    return value
