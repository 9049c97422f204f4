"""Describe a bundle: its contents, its origin, and the devices here that can run it."""

import argparse
from typing import TYPE_CHECKING, Any, Final

from gdposr import __version__
from gdposr.console import OK, add_bundle, emit, table

if TYPE_CHECKING:
    from runtime.bundle.packages import PackageList
    from runtime.bundle.reader import Bundle

# Levels shown of a manifest's free entries. A history of training has hundreds of settings.
LEVELS: Final = 2
HELP = "describe a bundle and the devices at hand"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument(
        "--json", action="store_true", help="print the whole manifest and the devices as JSON"
    )


def run(args: argparse.Namespace) -> int:
    from runtime.backends.choice import available_devices, offered
    from runtime.bundle.reader import Bundle

    bundle = Bundle.open(args.bundle)
    runs = {device: list(offered(bundle, device)) for device in available_devices()}
    if args.json:
        manifest = bundle.manifest.to_dict()
        emit(
            {
                "version": __version__,
                "path": str(bundle.path),
                "digest": bundle.digest,
                "devices": list(runs),
                "runs": runs,  # by device here, its precisions of this bundle
                "manifest": manifest,
            }
        )
    else:
        print(describe(bundle, runs))
    return OK


def describe(bundle: "Bundle", runs: dict[str, list[str]]) -> str:
    """A bundle as text. runs: by device, the precisions that it can run."""
    manifest = bundle.manifest
    size, noise = manifest.size, manifest.noise
    # facts: a line each
    facts = [
        ("model", manifest.name),
        ("scale", f"x{manifest.scale}"),
        ("bundle", f"{bundle.path} (format {manifest.format_version}, digest {bundle.digest})"),
        (
            "tiles",
            f"{size.tile} px with {size.context} px of context, multiples of {size.multiple_of}, overlap {size.overlap}",
        ),
        ("noise", f"{noise.channels} channels, one cell per {noise.downscale} px, version {noise.version}"),
        (
            "timesteps",
            "none" if manifest.t_n is None else f"noised at {manifest.t_n}, denoised as {manifest.t_d}",
        ),
        ("colour fix", manifest.color_fix),
        (
            "default",
            ", ".join(f"{precision} on {device}" for device, precision in manifest.default_precision.items()),
        ),
        (
            "devices here",
            "; ".join(f"{name}: {', '.join(found) or 'nothing'}" for name, found in runs.items()),
        ),
    ]
    # tables: files of each precision and variant
    graphs: list[tuple[str, ...]] = [("ONNX", "encoder", "generator", "probe floor")]
    for precision, files in manifest.graphs.items():
        sizes = [_size(files[graph].total_bytes) for graph in ("encoder", "generator")]
        graphs.append((precision, *sizes, f"{manifest.probe.floor_db[precision]:g} dB"))
    packages: list[tuple[str, ...]] = [("Core ML", "encoder", "generator", "tile", "from", "floor")]
    for variant, pair in manifest.coreml.items():
        sizes = [_package_size(pair[graph]) for graph in ("encoder", "generator")]
        first = pair["generator"]
        tile = ", ".join(f"{height}x{width}" for height, width in first.every_size)
        packages.append((variant, *sizes, tile, first.target, f"{first.floor_db:g} dB"))
    # text
    tables = [rows for rows in (graphs, packages) if len(rows) > 1]
    lines = [f"{name:13} {value}" for name, value in facts] + [
        x for rows in tables for x in ("", table(rows))
    ]
    # outlines of the export's notes
    for title, content in (("accuracy", manifest.accuracy), ("provenance", manifest.provenance)):
        if content:
            lines += ["", title, *_outline(content)]
    return "\n".join(lines)


def _package_size(packages: "PackageList") -> str:
    count = len(packages.packages)
    return _size(packages.total_bytes) + (f" in {count} chunks" if count > 1 else "")


def _size(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _outline(content: dict[str, Any], level: int = 1) -> list[str]:
    """Two levels of the content, and the number of entries below them."""
    lines = []
    for key, value in content.items():
        begin = f"{'  ' * level}{key}"
        if isinstance(value, dict) and level < LEVELS:
            lines += [begin, *_outline(value, level + 1)]
        elif isinstance(value, dict) or (
            isinstance(value, list) and any(isinstance(x, dict | list) for x in value)
        ):
            lines.append(f"{begin}: {len(value)} entries, see --json")
        else:
            lines.append(f"{begin}: {', '.join(map(str, value)) if isinstance(value, list) else value}")
    return lines
