"""Serve the web page on this machine and open it in the browser. The photos stay in the browser.

Ctrl-C stops it. Another machine cannot reach it: it listens on 127.0.0.1 alone.
"""

import argparse
import webbrowser
from pathlib import Path

from gdposr.console import OK, say, terminable, whole_number

HELP = "open the web page, which enlarges photos in the browser"
PORT = 8484


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, help="a bundle folder or zip (default: the built-in one)")
    parser.add_argument(
        "--port",
        type=whole_number(0, 65535),
        default=PORT,
        help=f"port on 127.0.0.1; 0 takes any that is free (default: {PORT})",
    )
    parser.add_argument("--no-browser", action="store_true", help="print the address, open nothing")


def run(args: argparse.Namespace) -> int:
    from gdposr.web.server import PageServer
    from gdposr.web.site import site_files
    from runtime.bundle.reader import Bundle

    files = site_files(Bundle.open(args.bundle))
    with PageServer(files, args.port) as server, terminable():
        print(server.url, flush=True)
        say("Ctrl-C stops the page")
        try:
            if not args.no_browser:
                webbrowser.open(server.url)
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            say("stopped")
    return OK
