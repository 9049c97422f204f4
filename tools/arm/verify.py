"""The runtime on ARM64 without an ARM machine, behind `make verify-arm`: noise, probe and golden picture under QEMU, against x86.

ONNX Runtime has INT8 kernels for matrix products of bytes (MMLA), for dot products (SDOT, UDOT) and for processors without either.
Three processors are emulated, one for each. The instructions that QEMU translated show which kernel was used. The time under emulation
means nothing and is not shown.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from gdposr.console import FAILED, OK, one_line, say, table
from runtime.errors import GdposrError
from runtime.upscale.probe import psnr_db
from tools.arm import checks
from tools.arm.root import MIRROR, RootError, emulated, prepare

# Where everything is kept, and the expected results; both below the clone.
FOLDER: Final = Path("build/arm")
VECTORS: Final = Path("examples/vectors")
# QEMU's name of a processor -> the INT8 instructions that ONNX Runtime uses there.
PROCESSORS: Final = {"max": "matrix products", "neoverse-n1": "dot products", "cortex-a53": "neither"}
# By precision: the least PSNR of ARM's result against that of x86 in dB, and the most levels by which a value may differ. Measured: no
# difference at all, on each of the three against x86-64 with AVX2. The limits leave room for another processor as host.
LIMITS: Final = {"fp32": (60.0, 1), "int8": (50.0, 8)}
# Mask and bits of an instruction: "Arm Architecture Reference Manual", Advanced SIMD three registers, and vector by element.
INSTRUCTIONS: Final = (
    ("matrix products", 0xDFE0F400, 0x4E80A400),  # SMMLA, UMMLA, USMMLA
    ("dot products", 0x9FE0FC00, 0x0E809400),  # SDOT, UDOT
    ("dot products", 0x9FC0F400, 0x0F80E000),  # the same by element
)
# A line of QEMU's log: address, and the instruction's word.
_LINE = re.compile(r"0x[0-9a-f]+:\s+([0-9a-f]{8})\b")
# Time after which an emulated run counts as hung and is stopped.
SECONDS: Final = 3600


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.arm.verify", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=FOLDER, help="folder of the ARM root (default: %(default)s)"
    )
    parser.add_argument("--bundle", type=Path, help="bundle to run (default: the built-in one)")
    parser.add_argument("--mirror", default=MIRROR, help="mirror of Debian (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        say(f"preparing an ARM64 Python in {args.out}")
        prepare(args.out, platform.machine(), args.mirror)
        host = checks.results(VECTORS, args.bundle)
        rows: list[tuple[str, ...]] = [HEAD]
        faults: list[str] = []
        for processor in PROCESSORS:
            say(f"running as {processor}, emulated: some minutes")
            arm, taken = run_emulated(args.out, processor, args.bundle)
            new, wrong = compare(arm, host, load("noise.json"), load("picture.json"))
            if taken != PROCESSORS[processor]:
                wrong.append(f"int8 kernel: expected {PROCESSORS[processor]}, got {taken}")
            rows.append((processor, "int8 kernel", taken, PROCESSORS[processor]))
            rows += [(processor, *row) for row in new]
            faults += [f"{processor}: {fault}" for fault in wrong]
        print(table(rows))
        say(
            f"ONNX Runtime {arm['onnxruntime']} on {arm['machine']}, {host['onnxruntime']} on {host['machine']}"
        )
    except (GdposrError, OSError) as error:
        say(f"error: {one_line(error).removeprefix('RootError: ')}")
        return FAILED
    for fault in faults:
        say(f"error: {fault}")
    return FAILED if faults else OK


# Heading of the printed table.
HEAD: Final = ("processor", "what", "result", "limit")


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((VECTORS / name).read_text(encoding="utf-8"))
    return content


def run_emulated(folder: Path, processor: str, bundle: Path | None) -> tuple[dict[str, Any], str]:
    """`checks.results` of an emulated processor, and its INT8 kernel. RootError if its Python does not end well."""
    log = folder / f"{processor}.log"
    words = ["-m", "tools.arm.checks", str(VECTORS), *(["--bundle", str(bundle)] if bundle else [])]
    command = emulated(folder, processor, words, Path.cwd(), log)
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise RootError(
            f"expected {processor} to end within {SECONDS} s, got no end: remove {folder} and try again"
        ) from error
    if result.returncode:
        last = " ".join(result.stderr.split("\n")[-4:])
        raise RootError(
            f"expected the emulated Python ({processor}) to end well, got exit code {result.returncode}: {last}; "
            f"remove {folder} and try again"
        )
    found: dict[str, Any] = json.loads(result.stdout)
    with log.open(encoding="utf-8", errors="replace") as lines:
        taken = kernel(lines)
    log.unlink()
    return found, taken


def kernel(lines: Iterable[str]) -> str:
    """The INT8 instructions in QEMU's log of translated code ("address: word  text" per line): a value of PROCESSORS."""
    found = set()
    for line in lines:
        match = _LINE.match(line)
        if match:
            word = int(match[1], 16)
            found |= {name for name, mask, bits in INSTRUCTIONS if word & mask == bits}
    return " and ".join(sorted(found)) or "neither"


def compare(
    arm: dict[str, Any], host: dict[str, Any], noise: dict[str, Any], case: dict[str, Any]
) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Rows of (what, result, limit), and a sentence for each limit that is not kept.

    arm, host: of `checks.results`.
    noise: noise.json of the vectors.
    case: their picture.json.
    """
    rows, faults = [], []

    def row(what: str, result: str, limit: str, kept: bool) -> None:
        """Add a row, and a fault if its limit is not kept. what, result, limit: its cells. kept: whether the limit is."""
        rows.append((what, result, limit))
        if not kept:
            faults.append(f"{what}: expected {limit}, got {result}")

    # noise: the same bits as in the vectors
    bits = [value["bits"] for value in noise["values"]]
    digests = [field["sha256"] for field in noise["fields"]]
    for what, got, expected in (
        ("noise, values", arm["bits"], bits),
        ("noise, fields", arm["digests"], digests),
    ):
        equal = sum(a == b for a, b in zip(got, expected, strict=True))
        row(what, f"{equal} bit-equal", f"{len(expected)} bit-equal", equal == len(expected))
    # probe: within its floor
    for precision, verdict in arm["probe"].items():
        floor = verdict["floor_db"]
        row(f"probe, {precision}", f"{verdict['psnr_db']:.1f} dB", f"{floor:.1f} dB", verdict["ok"])
    # picture: within the tolerance of the vectors
    golden = checks.to_pixels(case["fp32"])
    result = checks.to_pixels(arm["picture"]["fp32"])
    off = np.abs(result.astype(int) - golden)
    share = np.count_nonzero(off) / off.size
    row(
        "picture, fp32, to the vectors",
        f"{off.max()} levels, {share:.2%}",
        f"{case['most_levels']} levels, {case['most_share']:.2%}",
        off.max() <= case["most_levels"] and share <= case["most_share"],
    )
    psnr = psnr_db(checks.to_pixels(arm["picture"]["int8"]), golden)
    row(
        "picture, int8, to the vectors",
        f"{psnr:.1f} dB",
        f"{case['int8_floor_db']:.1f} dB",
        psnr >= case["int8_floor_db"],
    )
    # both machines: pictures of ARM and x86
    for precision, (least, most) in LIMITS.items():
        for what, a, b in (
            ("probe", arm["probe"][precision]["rows"], host["probe"][precision]["rows"]),
            ("picture", arm["picture"][precision], host["picture"][precision]),
        ):
            ours, theirs = checks.to_pixels(a), checks.to_pixels(b)
            psnr, levels = psnr_db(ours, theirs), int(np.abs(ours.astype(int) - theirs).max())
            row(
                f"{what}, {precision}, to x86",
                f"{psnr:.1f} dB, {levels} levels",
                f"{least:.1f} dB, {most} levels",
                psnr >= least and levels <= most,
            )
    return rows, faults


if __name__ == "__main__":
    sys.exit(main())
