"""Lines for a terminal on how the rows of an accuracy report differ from fp32."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calibration.measure.accuracy import AccuracyReport
    from calibration.measure.intervals import Difference

# Title, unit, digits.
SHOWN = {
    "psnr": ("PSNR", " dB", 3),
    "ssim": ("SSIM", "", 5),
    "sqf": ("SQF", "", 5),
    "niqe": ("NIQE", "", 4),
}


def difference_lines(report: "AccuracyReport") -> list[str]:
    """For each row compared with fp32: a line per real difference, and one that names the metrics without a difference."""
    compared = [row for row in report.rows if row.differences]
    lines = []
    for row in compared:
        lines += [
            f"{row.name}: {_difference(metric, found)}"
            for metric, found in row.differences.items()
            if found.real
        ]
        equal = [_title(metric)[0] for metric, found in row.differences.items() if not found.real]
        lines += [f"{row.name}: no difference in {', '.join(equal)}"] if equal else []
    return [*lines, report.caution] if report.caution else lines


def _difference(metric: str, found: "Difference") -> str:
    title, unit, digits = _title(metric)
    return f"{title} {found.mean:+.{digits}f}{unit} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def _title(metric: str) -> tuple[str, str, int]:
    """Title, unit and digits."""
    return SHOWN.get(metric, (metric.upper(), "", 4))
