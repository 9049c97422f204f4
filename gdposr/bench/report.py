"""The results of `gdposr bench` as text, as a table in Markdown, and as a page with a plot for each size."""

from collections.abc import Mapping
from typing import Any

from gdposr.console import table

# Heading of a column -> the key of its times in milliseconds.
COLUMNS = {
    "encoder": "encoder_ms",
    "generator": "generator_ms",
    "first sample": "first_sample_ms",
    "further sample": "further_sample_ms",
    "picture": "picture_ms",
}


def as_text(result: Mapping[str, Any]) -> str:
    """The results for a terminal."""
    machine, bundle = result["machine"], result["bundle"]
    flags = " ".join(flag if present else f"no-{flag}" for flag, present in machine["cpu_flags"].items())
    lines = [
        f"{bundle['name']} ({bundle['digest']}) on {result['device']}, {result['threads']} threads, "
        f"{result['size']}x{result['size']} input, {result['rounds']} rounds",
        f"{machine['cpu']}: {flags}; load {machine['load']}; {_versions(machine)}",
        "",
    ]
    rows: list[tuple[str, ...]] = [("ms, median [quartiles]", *COLUMNS, "overhead", "peak memory")]
    for label, figures in result["precisions"].items():
        peak = figures["peak_memory_mb"]
        memory = "unknown" if peak is None else f"{peak:.0f} MB"
        shown = [_shown(figures[column]) for column in COLUMNS.values()]
        rows.append((label, *shown, _percent(figures["overhead"]), memory))
    rows += [(name, "", "", _shown(peer["ms"]), "", "", "", "") for name, peer in result["peers"].items()]
    for block in result["pictures"]:
        for name, ms in block["ms"].items():
            share = _percent(block["overhead"].get(name))
            rows.append((f"{name}, {_sides(block)}", "", "", "", "", _shown(ms), share, ""))
    ratios = [(name, f"{value:.3f}") for name, value in all_ratios(result).items()]
    return "\n".join([*lines, table(rows), "", table([("ratio of time", ""), *ratios])])


def whole_pictures(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The times of whole pictures for each size: {"size", "rounds", "ms": {name: median and quartiles}, "overhead": {ours: the same},
    "ratios"}. Ours go through the whole pipeline."""
    own, peers = result["precisions"], result["peers"]
    ms = {name: row["picture_ms"] for name, row in own.items()}
    ms |= {name: row["ms"] for name, row in peers.items()}
    first = {
        "size": result["size"],
        "rounds": result["rounds"],
        "ms": ms,
        "overhead": {name: row["overhead"] for name, row in own.items()},
        "ratios": result["picture_ratios"],
    }
    return [first, *result["pictures"]]


def all_ratios(result: Mapping[str, Any]) -> dict[str, float]:
    """Ratios of the model's calls, then of whole pictures of each size."""
    return result["ratios"] | {
        f"{name}, {_sides(block)} picture": value
        for block in whole_pictures(result)
        for name, value in block["ratios"].items()
    }


def markdown(result: Mapping[str, Any]) -> str:
    """A table per size: times of whole pictures, and how many times as fast they are as each peer."""
    lines = []
    for block in whole_pictures(result):
        head, *rows = picture_table(result, block)
        lines += [
            f"{_heading(block)}, {_conditions(result)}, {block['rounds']} rounds:",
            "",
            f"| {' | '.join(head)} |",
            "|---" * len(head) + "|",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
        ]
    return "\n".join(lines)


def picture_table(result: Mapping[str, Any], block: Mapping[str, Any]) -> list[list[str]]:
    """Cells of a size's table, header first. A dash where a figure does not apply."""
    peers = list(result["peers"])
    head = ["model", "ms, median [quartiles]", "of fp32's time", "outside the model"]
    rows = [[*head, *(f"times as fast as {peer}" for peer in peers)]]
    for name, ms in block["ms"].items():
        against = [value for pair, value in block["ratios"].items() if pair in _fp32_pairs(name)]
        factors = (block["ratios"].get(f"{name} / {peer}") for peer in peers)
        faster = ["-" if factor is None else f"{1 / factor:.1f}" for factor in factors]
        share = _percent(block["overhead"].get(name)) or "-"
        rows.append([name, _shown(ms), f"{against[0]:.2f}" if against else "-", share, *faster])
    return rows


def page(result: Mapping[str, Any]) -> str:
    """The results as a single HTML file."""
    from calibration.report import page as report_page
    from calibration.report.plots import time_plot

    machine, sizes = result["machine"], whole_pictures(result)
    graphs = [
        [name, *(_shown(row[key]) for key in COLUMNS.values())] for name, row in result["precisions"].items()
    ]
    ratios = [[name, f"{value:.3f}"] for name, value in all_ratios(result).items()]
    return report_page.page(
        "speed.html.j2",
        title=f"Speed: {result['bundle']['name']}",
        conditions=f"{_conditions(result)}; bundle {result['bundle']['digest']}; {machine.get('system', '')}, Python "
        f"{machine.get('python', '')}, {_versions(machine)}",
        sizes=[
            {
                "heading": _heading(block),
                "plot": time_plot(block["ms"], list(result["precisions"]), "milliseconds per picture"),
                "rounds": block["rounds"],
                "table": picture_table(result, block),
            }
            for block in sizes
        ],
        sides=_sides(sizes[0]),
        graphs=[["model", *COLUMNS], *graphs],
        ratios=[["ratio", "median over the rounds"], *ratios],
    )


def _fp32_pairs(label: str) -> tuple[str, ...]:
    """Possible names of a ratio to fp32 on the same device. Labels name the device if there are several."""
    device, _, _ = label.rpartition(" ")
    return f"{label} / fp32", f"{label} / {device} fp32"


def _heading(block: Mapping[str, Any]) -> str:
    return f"Whole picture, {_sides(block)} to {4 * block['size']}x{4 * block['size']}"


def _sides(block: Mapping[str, Any]) -> str:
    return f"{block['size']}x{block['size']}"


def _shown(figure: Mapping[str, float]) -> str:
    return f"{figure['median']:.1f} [{figure['low']:.1f} {figure['high']:.1f}]"


def _percent(share: Mapping[str, float] | None) -> str:
    return "" if share is None else f"{share['median']:.1%}"


def _versions(machine: Mapping[str, Any]) -> str:
    return " ".join(f"{name} {version}" for name, version in machine["packages"].items())


def _conditions(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    flags = ", ".join(name for name, present in machine["cpu_flags"].items() if present)
    return f"{result['threads']} threads of {machine['cpu']} ({flags}), {result['device']}, load {machine['load']}"
