"""Write the web page to a folder that any host can serve: `make web`."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from gdposr.console import FAILED, OK, USAGE, UsageError, add_bundle, one_line, say
from gdposr.web.site import BUDGET, ENGINE, MODEL, SERVICE_WORKER, page_bytes, site_files


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gdposr.web.build", description=__doc__)
    add_bundle(parser, "--bundle")
    parser.add_argument(
        "--out", type=Path, default=Path("build/web"), help="folder to write (default: build/web)"
    )
    args = parser.parse_args(argv)
    from runtime.bundle.reader import Bundle
    from runtime.errors import GdposrError

    try:
        files = site_files(Bundle.open(args.bundle))
        write_site(files, args.out)
    except (UsageError, GdposrError) as error:
        say(f"error: {one_line(error)}")
        return USAGE
    size = page_bytes(files)
    for name, part in (("ONNX Runtime", ENGINE), ("model", MODEL)):
        count = sum(len(content) for path, content in files.items() if path.startswith(part))
        print(f"{name:13} {count / 1e6:6.2f} MB")
    print(f"{'page':13} {size / 1e3:6.1f} kB of at most {BUDGET / 1e3:.0f}")
    print(f"{'in':13} {args.out}")
    return OK if size <= BUDGET else FAILED


def write_site(files: dict[str, bytes], out: Path) -> None:
    """Write the files, replacing an earlier page. UsageError if the folder holds something else."""
    if out.exists() and not (out / SERVICE_WORKER).exists() and any(out.iterdir()):
        raise UsageError(
            f"--out: expected a new folder or one with an earlier page, got {out}; choose another"
        )
    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    for path, content in files.items():
        target = fresh / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)


if __name__ == "__main__":
    sys.exit(main())
