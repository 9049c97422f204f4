"""The `gdposr` command: picks the verb, and turns an error into one line and an exit code.

Exit codes: 0 all done; 1 some inputs failed (the others are done) or a check did not hold; 2 the command could
not start (arguments, bundle, device); 130 interrupted. Nothing heavy is imported before a verb runs.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
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
    serve,
    train,
    upscale,
    verify,
)
from gdposr.console import FAILED, INTERRUPTED, OK, USAGE, UsageError, debugging, one_line, say
from gdposr.streams import lenient_streams

# Verbs of this package, and stages with parsers of their own, which need an extra.
VERBS: dict[str, ModuleType] = {
    "upscale": upscale,
    "serve": serve,
    "info": info,
    "verify": verify,
    "bench": bench,
    "accuracy": accuracy,
    "sensitivity": sensitivity,
    "blind": blind,
}
# Verbs whose options are parsed by another package.
FORWARDED: dict[str, ModuleType] = {"train": train, "distill": distill, "export": export, "coreml": coreml}

# Shells that shtab writes completion scripts for.
SHELLS = ("bash", "zsh", "tcsh")

# The last lines of `gdposr --help`.
EPILOG = """\
exit codes: 0 done, 1 some inputs failed or a check did not hold, 2 could not start, 130 interrupted, 143 terminated
GDPOSR_DEBUG=1 shows tracebacks instead of one-line errors."""


def build_parser(arguments: Sequence[str], complete: bool = False) -> argparse.ArgumentParser:
    """The parser of a command line. A verb's own arguments are added only if the line names it, or if complete."""
    parser = argparse.ArgumentParser(
        prog="gdposr",
        description="On-device generative super-resolution: a photo in, sharp and believable 4x versions out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--print-completion",
        choices=SHELLS,
        metavar="SHELL",
        help=f"print a completion script for {', '.join(SHELLS)}; needs the extra `completion`",
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
        if name in VERBS and (name in arguments or complete):
            module.add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns an exit code and raises nothing, except with GDPOSR_DEBUG=1."""
    with lenient_streams() as out:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        out.flush()
        if out.lost is not None:
            say(
                f"error: stdout cannot be written ({out.lost.strerror}): the report is not complete, check free space"
            )
            return code or FAILED
    return code


def _run(arguments: Sequence[str]) -> int:
    try:
        if arguments and arguments[0] in FORWARDED:
            return int(FORWARDED[arguments[0]].forward(arguments[1:]))
        if arguments[:1] == ["--print-completion"] and len(arguments) == 2 and arguments[1] in SHELLS:
            return _print_completion(arguments[1])
        args = build_parser(arguments).parse_args(arguments)
        return int(VERBS[args.verb].run(args))
    except SystemExit as stop:  # argparse: --help, --version, a wrong argument
        return stop.code if isinstance(stop.code, int) else OK if stop.code is None else FAILED
    except KeyboardInterrupt:
        say("interrupted; finished files stay, no partial file is left")
        return INTERRUPTED
    except Exception as error:
        if debugging():
            raise
        say(f"error: {one_line(error)}")
        return USAGE if _could_not_start(error) else FAILED


def _print_completion(shell: str) -> int:
    """Print the completion script of the library shtab for one shell."""
    try:
        import shtab
    except ImportError as error:
        raise UsageError(
            f'--print-completion: expected the package shtab, got: {error}; run: pip install "gdposr[completion]"'
        ) from error
    parser = build_parser([], complete=True)
    for action in _actions(parser):
        if action.type is Path or action.dest in ("inputs", "out"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell))
    return OK


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in set(action.choices.values()):
                yield from _actions(sub)


def _could_not_start(error: Exception) -> bool:
    """Whether an error is about arguments, bundle or device. The verb counts errors of photos."""
    if isinstance(error, UsageError):
        return True
    from runtime.errors import BundleError, DeviceError, SettingError

    return isinstance(error, BundleError | DeviceError | SettingError)
