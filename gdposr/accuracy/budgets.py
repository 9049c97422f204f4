"""Chooses the limits for each row of `gdposr accuracy`, and names those that cannot be checked."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gdposr.accuracy.coreml_rows import ALL, ROW
from gdposr.console import UsageError, say

if TYPE_CHECKING:
    from calibration.measure.gates import Gates
    from runtime.bundle.reader import Bundle


def chosen_budgets(
    args: argparse.Namespace, bundle: Bundle, rows: Sequence[str], metrics: Sequence[str]
) -> dict[str, Gates]:
    """The budget of each measured row that has one. UsageError if `--check` has nothing to compare with.

    args: of the command, with its --budget and --check.
    bundle: its manifest has the budgets for --check.
    rows: the measured rows. Others are left out, with a message.
    metrics: the measured learned metrics. Limits of others are left out, with a message unless --budget names them.
    """
    from calibration.measure.gates import LPIPS_GATES, SQF_GATES, Gates, default_budgets

    asked = Gates.from_texts(args.budget)
    every = [*bundle.manifest.graphs, *(ROW.format(variant) for variant in bundle.manifest.coreml)]
    stated = default_budgets(bundle.manifest.budgets, every) if args.check else {}
    _check_reference(bundle, stated)
    _say_unmeasured(args, [row for row in stated if row not in rows])
    unmeasured = [
        *(SQF_GATES if args.sqf_weights is None else ()),
        *(LPIPS_GATES if "lpips" not in metrics else ()),
    ]
    dropped = [
        name for name in unmeasured if any(name in stated[row].to_dict() for row in rows if row in stated)
    ]
    for name in dropped:
        remedy = "--sqf-weights FILE" if name in SQF_GATES else "--metric lpips"
        if name not in asked.to_dict():
            say(f"not checked: {name}, which needs {remedy}")
    budgets = {row: stated.get(row, Gates()).without(unmeasured).overridden(asked) for row in rows}
    kept = {row: gates for row, gates in budgets.items() if gates.to_dict()}
    if args.check and not kept:
        say(f"nothing to check: no measured row has a budget ({', '.join(rows) or 'there is none'})")
    return kept


def _check_reference(bundle: Bundle, stated: Mapping[str, Gates]) -> None:
    from calibration.measure.intervals import REFERENCE

    needing = [row for row, gates in stated.items() if row != REFERENCE and gates.needs_reference]
    if needing and REFERENCE not in bundle.manifest.graphs:
        raise UsageError(
            f"--check: the budgets of {', '.join(needing)} are against ONNX graphs in {REFERENCE}, which this bundle lacks: export it "
            "with `--targets onnx,coreml`, or leave out --check and ask for limits such as --budget min_psnr=25"
        )


def _say_unmeasured(args: argparse.Namespace, rows: Sequence[str]) -> None:
    packages = {row for row in rows if row.startswith(ROW.format(""))}
    remedies = ["give --coreml all"] if packages and ALL not in args.coreml else []
    remedies += ["leave out --precision"] if set(rows) - packages else []
    if rows:
        say(f"not checked: {', '.join(rows)}" + (f" ({', '.join(remedies)})" if remedies else ""))
