"""The `gdposr` command: picks the verb and turns what went wrong into one line and an exit code.

Exit codes: 0 all done; 1 some inputs failed (the others are done) or a check did not hold; 2 the command could
not start (arguments, bundle, device); 130 interrupted. Nothing heavy is imported before a verb runs.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from gdposr import __version__
from gdposr.commands import (
    accuracy,
    bench,
    blind,
    coreml,
    distill,
    export,
    info,
    sensitivity,
    train,
    upscale,
    verify,
)
from gdposr.console import FAILED, INTERRUPTED, OK, USAGE, UsageError, debugging, one_line, say

# The stages get their arguments handed on: they have parsers of their own and need an extra.
VERBS: dict[str, ModuleType] = {
    "upscale": upscale,
    "info": info,
    "verify": verify,
    "bench": bench,
    "accuracy": accuracy,
    "sensitivity": sensitivity,
    "blind": blind,
}
FORWARDED: dict[str, ModuleType] = {"train": train, "distill": distill, "export": export, "coreml": coreml}

EPILOG = """\
exit codes: 0 done, 1 some inputs failed or a check did not hold, 2 could not start, 130 interrupted, 143 terminated
GDPOSR_DEBUG=1 shows tracebacks instead of one-line errors."""


def build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of a command line. Only a verb that stands in it gets its own arguments."""
    parser = argparse.ArgumentParser(
        prog="gdposr",
        description="On-device generative super-resolution: a photo in, sharp and believable 4x versions out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gdposr {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, module in (VERBS | FORWARDED).items():
        sub = verbs.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in VERBS and name in arguments:
            module.add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; always returns an exit code and never raises, except with GDPOSR_DEBUG=1."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in FORWARDED:
            return int(FORWARDED[arguments[0]].forward(arguments[1:]))
        args = build_parser(arguments).parse_args(arguments)
        return int(VERBS[args.verb].run(args))
    except SystemExit as stop:  # argparse: --help, --version, a wrong argument
        return stop.code if isinstance(stop.code, int) else OK if stop.code is None else FAILED
    except KeyboardInterrupt:
        say("interrupted; finished files stay, no partial file is left")
        return INTERRUPTED
    except BrokenPipeError:  # `gdposr info | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if debugging():
            raise
        say(f"error: {one_line(error)}")
        return USAGE if _could_not_start(error) else FAILED


def _could_not_start(error: Exception) -> bool:
    """Arguments, bundle and device problems; a photo's own problem is counted by the verb instead."""
    if isinstance(error, UsageError):
        return True
    from runtime.errors import BundleError, DeviceError, SettingError

    return isinstance(error, BundleError | DeviceError | SettingError)
