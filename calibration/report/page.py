"""The frame of a report page: its template, its style in a light and a dark scheme, and the script that compares crops.

Nothing is loaded from elsewhere, and a content security policy in the page forbids it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def name_text(name: str) -> str:
    """A name as HTML that may break after an underscore or a slash, of which file names are full."""
    return escape(name).replace("_", "_<wbr>").replace("/", "/<wbr>")


def document(
    title: str, parts: Sequence[str], *, head: str = "", compared: tuple[str, str] | None = None
) -> str:
    """A whole HTML page. parts, head: HTML, head below the title; empty parts are left out. compared: names of the crops that the
    comparison of each picture opens with; None: there are none."""
    from jinja2 import Environment, PackageLoader  # of the extra `report`
    from markupsafe import Markup

    pages = Environment(
        loader=PackageLoader("calibration.report", "templates"), autoescape=lambda name: str(name).endswith(".html.j2"),
        trim_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    page = pages.get_template("page.html.j2")
    return page.render(
        title=title, head=Markup(head), parts=[Markup(part) for part in parts], compared=compared
    )
