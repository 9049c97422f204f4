"""Text for people, names and errors as they can be shown on any terminal, and values as JSON has them."""

import math
import sys
import unicodedata
from typing import Any, Final

# Joiners are part of words in Persian and of many emoji.
_HARMLESS: Final = "\u200c\u200d"
# Controls, format marks such as those of direction, halves of a pair, private and unassigned characters, ends of lines.
_HIDDEN: Final = ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp")


def printable(text: object) -> str:
    """A text in which characters are escaped that control a terminal, change the writing direction or cannot be encoded.

    An invalid byte of a name, which Python keeps as a lone surrogate, becomes \\xNN.
    """
    plain = str(text)
    if plain.isascii() and plain.isprintable():
        return plain
    return "".join(_shown(character) if is_hidden(character) else character for character in plain)


def print_error(error: object) -> None:
    """Print "error: ..." on stderr, each line of it printable."""
    print("error: " + "\n".join(map(printable, str(error).splitlines())), file=sys.stderr)


def first_line(error: Exception) -> str:
    """The first line of its message, or its type name if the message is empty, cut to 300 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def finite(value: Any) -> Any:
    """The value as JSON can hold it: infinity and NaN become None, tuples become lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def is_hidden(character: str) -> bool:
    """Whether a character is escaped."""
    return unicodedata.category(character) in _HIDDEN and character not in _HARMLESS


def _shown(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
