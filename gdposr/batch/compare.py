"""A page beside an output that shows before and after, with a slider between them, in a single file."""

import base64
import html
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.image.bands import Strips
    from runtime.image.photo import Photo

# Longer side in pixels. A larger result is reduced for the page.
SIDE = 4096
# Of the JPEGs in the page.
QUALITY = 92

# The page, with fields for `str.format`.
PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ margin: 0; background: #222; color: #ddd; font: 14px system-ui, sans-serif; }}
header {{ padding: 8px 12px; display: flex; gap: 1em; flex-wrap: wrap; }}
label {{ margin-left: auto; }}
#frame {{ --at: 50%;
  position: relative; width: min(100vw, calc((100vh - 40px) * {width} / {height})); margin: auto; overflow: hidden; }}
#frame img {{ display: block; width: 100%; aspect-ratio: {width} / {height}; }}
#after {{ position: absolute; inset: 0; clip-path: inset(0 0 0 var(--at)); }}
#line {{ position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px; background: #fff; }}
#slider {{ position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize; }}
#frame.whole {{ width: {width}px; }}
</style>
<header><span>{title}</span><span>left: {before_size}, right: {after_size}{reduced}</span>
<label><input type="checkbox" id="whole"> pixel by pixel</label></header>
<div id="frame">
<img alt="before" src="{before}">
<div id="after"><img alt="after" src="{after}"></div>
<div id="line"></div>
<input id="slider" type="range" min="0" max="100" step="0.1" value="50" aria-label="before and after">
</div>
<script>
const frame = document.getElementById("frame");
document.getElementById("slider").oninput = event => frame.style.setProperty("--at", event.target.value + "%");
document.getElementById("whole").onchange = event => frame.classList.toggle("whole", event.target.checked);
</script>
</html>
"""


class Preview:
    """A result reduced to at most SIDE pixels a side, row by row, so that it is never whole in memory."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.size = shape[1], shape[0]
        self._step = -(-max(self.size) // SIDE)
        self._rows: list[NDArray[np.uint8]] = []
        self._rest: NDArray[np.uint8] | None = None  # rows that do not fill a step yet

    def passing(self, strips: "Strips") -> "Strips":
        """The same strips. `take` gets each band as it passes."""
        from runtime.image.bands import Strips

        def bands() -> "Iterator[NDArray[Any]]":
            for band in strips.bands:
                self.take(band)
                yield band

        return Strips(strips.shape, strips.dtype, bands())

    def take(self, band: "NDArray[Any]") -> None:
        """Add the next rows (n, W[, C]), reduced to the means of squares of `step` x `step` pixels."""
        from gdposr.batch.sheet import to_rgb8

        rows, step = to_rgb8(band), self._step
        if step == 1:
            self._rows.append(rows)
            return
        rows = rows if self._rest is None else np.concatenate([self._rest, rows])
        height, width = len(rows) // step, rows.shape[1] // step
        self._rest = rows[height * step :].copy()
        squares = rows[: height * step, : width * step].reshape(height, step, width, step, 3)
        self._rows.append(np.rint(squares.mean(axis=(1, 3), dtype=np.float32)).astype(np.uint8))

    def pixels(self) -> "NDArray[np.uint8]":
        """(h, w, 3), after all rows have passed."""
        return np.concatenate(self._rows)

    @property
    def reduced(self) -> bool:
        return self._step > 1


def page_path(target: Path) -> Path:
    """The page's file for an output."""
    return target.with_name(f"{target.stem}_compare.html")


def write_page(path: Path, title: str, before: "Photo", preview: Preview) -> None:
    """Write the page. It appears complete or not at all.

    path: of the page.
    title: its heading.
    before: the input.
    preview: of the result, after all its rows have passed.
    """
    from gdposr.batch.sheet import to_rgb8
    from runtime.files import atomic_file
    from runtime.text import printable

    after = preview.pixels()
    height, width = before.pixels.shape[:2]
    text = PAGE.format(
        title=html.escape(printable(title)),
        width=after.shape[1],
        height=after.shape[0],
        before_size=f"{width}x{height}",
        after_size=f"{preview.size[0]}x{preview.size[1]}",
        reduced=f", shown in {after.shape[1]}x{after.shape[0]}" if preview.reduced else "",
        before=_embedded(to_rgb8(before.pixels), before.icc),
        after=_embedded(after, before.icc),
    )
    with atomic_file(path) as stream:
        stream.write(text.encode("utf-8", "backslashreplace"))


def _embedded(pixels: "NDArray[np.uint8]", icc: bytes | None) -> str:
    """(h, w, 3) as the data URL of a JPEG."""
    from PIL import Image

    image, stream = Image.fromarray(pixels), io.BytesIO()
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE))
    colours = {} if icc is None or icc[16:20] != b"RGB " else {"icc_profile": icc}
    image.save(stream, "JPEG", quality=QUALITY, subsampling=0, **colours)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
