"""Formats numbers for reports."""

from __future__ import annotations

import math

MINUS, INFINITY = "\N{MINUS SIGN}", "\N{INFINITY}"


def number(value: float | None, digits: int) -> str:
    """A number with so many digits after the point. A dash for None."""
    if value is None:
        return "-"
    if math.isinf(value):
        return INFINITY
    text = f"{value:.{digits}f}"
    return text.replace("-", MINUS) if float(text) else text.lstrip("-")


def signed(value: float, digits: int) -> str:
    """A number with its sign. In powers of ten if so few digits would show only zeros."""
    text = f"{value:+.{digits}f}"
    if value and not float(text):
        text = f"{value:+.0e}"
    return text.replace("-", MINUS)


def size_text(count: int | None) -> str:
    """Bytes in decimal units; a dash for None."""
    if count is None:
        return "-"
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB" if count else "0"
