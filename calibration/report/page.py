"""The pages of reports, made of the templates in `templates/`.

A page is a single file: it contains style and script, and its content security policy forbids to load anything.
"""

from __future__ import annotations

import math
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from calibration.report.numbers import number, signed, size_text

_PAGES = Environment(
    loader=PackageLoader("calibration.report", "templates"), autoescape=True, undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip
_PAGES.filters.update(number=number, signed=signed, size=size_text)
_PAGES.tests["finite"] = lambda value: value is not None and math.isfinite(value)


def page(template: str, **values: Any) -> str:
    """A whole HTML page. template: a file in `templates/`. values: for the template, escaped unless they are plots."""
    return _PAGES.get_template(template).render(values)
