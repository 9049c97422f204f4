"""What `gdposr bench` measured as a table in Markdown and as a page with a plot."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, LEFT, RIGHT, ROW = 760, 250, 90, 26  # of a plot, in its own units


def whole_pictures(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """By size: {"size", "ms": {name: median and quartiles}, "ratios"} of whole pictures, ours through the whole pipeline."""
    first = {
        "size": result["size"],
        "ms": {name: row["picture_ms"] for name, row in result["precisions"].items()}
        | {name: row["ms"] for name, row in result["peers"].items()},
        "ratios": {},
    }
    first["ratios"] = {
        f"{ours} / {peer}": first["ms"][ours]["median"] / first["ms"][peer]["median"]
        for ours in result["precisions"]
        for peer in result["peers"]
    }
    return [first, *result["pictures"]]


def markdown(result: Mapping[str, Any]) -> str:
    """A table per size: whole pictures, and how many times as fast as each peer."""
    lines = []
    for block in whole_pictures(result):
        size, peers = block["size"], list(result["peers"])
        lines += [
            f"Whole picture, {size}x{size} to {4 * size}x{4 * size}, {_conditions(result)}:",
            "",
            "| model | ms, median [quartiles] | " + "".join(f"times as fast as {peer} | " for peer in peers),
            "|---|---|" + "---|" * len(peers),
        ]
        for name, ms in block["ms"].items():
            ratios = (block["ratios"].get(f"{name} / {peer}") for peer in peers)
            faster = "".join("- | " if ratio is None else f"{1 / ratio:.1f} | " for ratio in ratios)
            lines.append(
                f"| {name} | {ms['median']:.1f} [{ms['low']:.1f} {ms['high']:.1f}] | {faster}".rstrip()
            )
        lines.append("")
    return "\n".join(lines)


def page(result: Mapping[str, Any]) -> str:
    """The same as one HTML file that needs nothing else, with a plot per size."""
    from calibration.page import document

    title = f"Speed: {result['bundle']['name']}"
    note = f'<p class="note">{escape(_conditions(result))}; bundle {escape(result["bundle"]["digest"])}</p>'
    scale = (
        "Milliseconds on a logarithmic scale, median; the thin line spans the quartiles. Shorter is faster."
    )
    parts = [f"<header><h1>{escape(title)}</h1>{note}</header>"]
    for block in whole_pictures(result):
        size = block["size"]
        parts.append(
            f"<h2>Whole picture, {size}x{size} to {4 * size}x{4 * size}</h2>"
            f'<div class="card">{plot(block["ms"], ours=list(result["precisions"]))}'
            f'<p class="note">{scale}</p></div>'
        )
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{value:.3f}</td></tr>"
        for name, value in [
            *result["ratios"].items(),
            *(
                (f"{name}, {block['size']}x{block['size']} picture", value)
                for block in whole_pictures(result)
                for name, value in block["ratios"].items()
            ),
        ]
    )
    parts.append(
        f'<h2>Ratios of time</h2><div class="card"><table><tr><th>ratio</th><th></th></tr>{rows}</table></div>'
    )
    return document(title, parts, script=False)


def plot(ms: Mapping[str, Mapping[str, float]], ours: Sequence[str]) -> str:
    """Horizontal bars of the medians, on a logarithmic axis, as an SVG."""
    low = min(row["low"] for row in ms.values()) / 2
    high = max(row["high"] for row in ms.values()) * 1.1

    def at(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(value / low) / math.log(high / low)

    height = 30 + ROW * len(ms)
    parts = []
    for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1):
        x = at(10.0**power)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="20" y2="{height}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="13" text-anchor="middle">{10.0**power:g} ms</text>')
    for index, (name, row) in enumerate(ms.items()):
        y, end = 26 + ROW * index, at(row["median"])
        colour = "#0072b2" if name in ours else "#c2500a"
        middle = y + ROW / 2 - 4
        parts += [
            f'<text x="{LEFT - 8}" y="{middle + 4:.1f}" text-anchor="end" font-size="12">{escape(name)}</text>',
            f'<rect fill="{colour}" x="{LEFT}" y="{y}" width="{end - LEFT:.1f}" height="{ROW - 8}" rx="2"/>',
            f'<line stroke="currentColor" x1="{at(row["low"]):.1f}" x2="{at(row["high"]):.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>',
            f'<text x="{at(row["high"]) + 6:.1f}" y="{middle + 4:.1f}" font-size="12">{row["median"]:.1f}</text>',
        ]
    return f'<svg viewBox="0 0 {WIDTH} {height}" width="100%" role="img" aria-label="milliseconds per picture">{"".join(parts)}</svg>'


def _conditions(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    flags = ", ".join(name for name, present in machine["cpu_flags"].items() if present)
    return f"{result['threads']} threads of {machine['cpu']} ({flags}), {result['device']}, load {machine['load']}"
