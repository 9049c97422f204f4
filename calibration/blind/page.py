"""A study as one HTML file to vote on. Pictures, style and script are inside it; it loads nothing.

The page is `templates/vote.html`, filled by the standard library alone, so that a study needs no extra.
Votes are kept in the browser (localStorage, under the study's digest) and saved as a file of votes that `gdposr blind score` reads.
"""

from __future__ import annotations

import base64
import json
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from calibration.blind.study import Study, StudyError


def study_page(study: Study) -> str:
    """The whole page. StudyError if a picture of the study is missing."""
    value = {
        "digest": study.digest,
        "pairs": [_pair(study, number) for number in range(1, study.pairs + 1)],
    }
    html, style, script = (
        files("calibration.blind").joinpath("templates", name).read_text(encoding="utf-8")
        for name in ("vote.html", "vote.css", "vote.js")
    )
    return Template(html).substitute(
        question=escape(study.question),
        pairs=study.pairs,
        style=style,
        script=script,
        data=json.dumps(value).replace("</", "<\\/"),
    )


def _pair(study: Study, number: int) -> dict[str, Any]:
    """Pictures of a pair as data: URIs, and the width of an enlargement in pixels."""
    contents = {}
    for part in ("input", "left", "right"):
        path = study.picture(number, part)
        try:
            contents[part] = path.read_bytes()
        except OSError as error:
            raise StudyError(
                f"{path}: expected a picture of the study, cannot be read ({error.strerror}): copy the study again"
            ) from None
    # bytes 16 to 20 of a PNG are its width
    side = int.from_bytes(contents["left"][16:20], "big")
    pictures = {
        part: "data:image/png;base64," + base64.b64encode(data).decode() for part, data in contents.items()
    }
    return {**pictures, "side": side}
