"""Check a bundle: the hash of every file, then its probe on this device in every precision.

The probe is a small picture with a known result. It finds a device that silently computes something else.
"""

import argparse
from typing import TYPE_CHECKING, Any

from gdposr import __version__
from gdposr.console import FAILED, OK, UsageError, add_bundle, emit, one_line, say, whole_number

if TYPE_CHECKING:
    from runtime.bundle.reader import Bundle

HELP = "check a bundle's hashes and run its probe on this device"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument("--device", default="auto", help="where the probe runs (default: auto)")
    parser.add_argument(
        "--precision",
        action="append",
        help="probe only this one; may be repeated (default: all that run here)",
    )
    parser.add_argument("--threads", type=whole_number(1), help="CPU threads (default: all cores)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    from runtime.backends.choice import offered
    from runtime.bundle.reader import Bundle
    from runtime.errors import BundleError

    if args.bundle is not None and not args.bundle.exists():
        raise UsageError(f"{args.bundle}: expected a bundle folder or zip, there is nothing: check the path")
    result: dict[str, Any] = {
        "version": __version__,
        "path": str(args.bundle or ""),
        "ok": False,
        "error": None,
    }
    try:
        bundle = Bundle.open(args.bundle)
        result |= {
            "path": str(bundle.path),
            "digest": bundle.digest,
            "files": len(bundle.manifest.files),
            "probes": [],
        }
        bundle.verify()
    except BundleError as error:
        result["error"] = one_line(error)
        say(f"failed: {result['error']}")
    else:
        if not args.json:
            print(f"hashes  ok      {result['files']} files of {bundle.path} ({bundle.digest})")
        wanted = args.precision or list(offered(bundle, args.device))
        if not wanted:
            say(
                f"no probe: nothing of this bundle runs on {_here(args.device)}; its Core ML packages run on a Mac"
            )
        result["probes"] = [
            _probe(bundle, args.device, precision, args.threads, args.json) for precision in wanted
        ]
        result["ok"] = all(probe["ok"] for probe in result["probes"])
    if args.json:
        emit(result)
    return OK if result["ok"] else FAILED


def _probe(bundle: "Bundle", device: str, precision: str, threads: int | None, quiet: bool) -> dict[str, Any]:
    """Run the probe in one precision. Returns its entry in the report. DeviceError for an unknown device or precision.

    bundle: the model.
    device, precision: as for `Upscaler`.
    threads: of the model; None: all.
    quiet: whether the verdict is left out on stdout.
    """
    from runtime.backends.choice import open_backend, placement_note, resolve
    from runtime.errors import GdposrError
    from runtime.upscale.probe import run_probe

    chosen, precision, notes = resolve(bundle, device, precision)
    for note in notes:
        say(note)
    result: dict[str, Any] = {"device": chosen, "precision": precision, "ok": False, "notes": list(notes)}
    try:
        backend = open_backend(bundle, chosen, precision, threads)
        outcome = run_probe(bundle, backend)
    except GdposrError as error:  # the graphs cannot be loaded or run here
        say(f"failed: {one_line(error)}")
        empty = {"placement": None, "psnr_db": None, "floor_db": None}
        return result | empty | {"error": one_line(error)}
    warning = placement_note(backend)
    if warning is not None:
        say(warning)
        result["notes"].append(warning)
    if not quiet:
        verdict = "ok    " if outcome.ok else "FAILED"
        figures = f"{outcome.psnr_db:.1f} dB, floor {outcome.floor_db:g} dB"
        print(f"probe   {verdict}  {precision} on {chosen}: {figures}{_nodes(backend.placement)}")
    return result | {
        "placement": backend.placement,
        "psnr_db": outcome.psnr_db,
        "floor_db": outcome.floor_db,
        "ok": outcome.ok,
        "error": None,
    }


def _here(device: str) -> str:
    return "any device here" if device == "auto" else f"the device {device}"


def _nodes(placement: dict[str, int] | None) -> str:
    """The number of the graphs' nodes by provider, for the end of a line."""
    if placement is None:
        return ""
    return "; nodes: " + ", ".join(f"{count} {provider}" for provider, count in placement.items())
