"""Serve the web page on this machine and open it in the browser. The photos stay in the browser.

With --api serve programs instead: POST a photo, get pictures. It needs the extra `server`.
Ctrl-C stops both. Other machines cannot reach them, since they listen on 127.0.0.1 unless --host names another address.
"""

import argparse
import webbrowser
from typing import Any

from gdposr.console import OK, UsageError, add_bundle, memory_size, pixel_limit, say, terminable, whole_number
from gdposr.forward import require

HELP = "open the web page, which enlarges photos in the browser; with --api serve programs"
# Where both servers listen by default: a port, and an address that no other machine reaches.
PORT = 8484
HOST = "127.0.0.1"
# Modules of the extra `server`.
PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
# Options of --api that set fields of `Limits`.
LIMITS = ("max_bytes", "max_pixels", "max_samples", "timeout", "transfer_timeout", "waiting")
# Options that mean nothing without --api.
API_ALONE = ("host", "device", "precision", "threads", "workers", *LIMITS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser, "--bundle")
    parser.add_argument(
        "--port",
        type=whole_number(0, 65535),
        default=PORT,
        help=f"port on 127.0.0.1; 0 takes any that is free (default: {PORT})",
    )
    parser.add_argument("--no-browser", action="store_true", help="print the address, open nothing")
    parser.add_argument("--api", action="store_true", help="serve programs over HTTP instead of the page")
    api = parser.add_argument_group("with --api")
    api.add_argument("--host", help=f"address to listen on; other machines reach any but {HOST} (default)")
    api.add_argument("--device", help="auto, cpu, cuda, ... (default: auto)")
    api.add_argument("--precision", help="auto, fp32, fp16 or int8 (default: auto)")
    api.add_argument(
        "--threads", type=whole_number(1), help="CPU threads of each worker (default: its share)"
    )
    api.add_argument("--workers", type=whole_number(1, 64), help="photos enlarged at once (default: 1)")
    api.add_argument(
        "--waiting", type=whole_number(0, 10_000), help="photos in the queue besides those (default: 16)"
    )
    api.add_argument(
        "--max-bytes", type=memory_size, metavar="SIZE", help="of a photo's file, such as 8M (default: 32M)"
    )
    api.add_argument(
        "--max-pixels", type=pixel_limit, metavar="MEGAPIXELS", help="of a photo (default: 4 megapixels)"
    )
    api.add_argument("--max-samples", type=whole_number(1, 1000), help="versions in one answer (default: 8)")
    api.add_argument(
        "--timeout",
        type=whole_number(1),
        metavar="SECONDS",
        help="from the whole photo to its pictures, the queue included (default: 60)",
    )
    api.add_argument(
        "--transfer-timeout",
        type=whole_number(1),
        metavar="SECONDS",
        help="for a photo to come in, and for an answer to go out (default: 120)",
    )


def run(args: argparse.Namespace) -> int:
    given = {name: value for name in API_ALONE if (value := getattr(args, name)) is not None}
    if args.api:
        return _serve_api(args, given)
    if given:
        option = next(iter(given)).replace("_", "-")
        raise UsageError(f"--{option} is for the server of programs: add --api, or leave it out")
    return _serve_page(args)


def _serve_page(args: argparse.Namespace) -> int:
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


def _serve_api(args: argparse.Namespace, given: dict[str, Any]) -> int:
    require(PACKAGES, "server", "--api")
    from gdposr.server.limits import Limits
    from gdposr.server.run import LOOPBACK, api_server, listening, url_of
    from runtime.backends.devices import usable_processors
    from runtime.upscale.upscaler import Upscaler

    host, workers = given.get("host", HOST), given.get("workers", 1)
    limits = Limits(**{name: given[name] for name in LIMITS if name in given})
    try:
        with (
            terminable(),
            listening(host, args.port) as listener,
            Upscaler(
                args.bundle,
                device=given.get("device", "auto"),
                precision=given.get("precision", "auto"),
                threads=given.get("threads", max(1, usable_processors() // workers)),
                notify=say,
            ) as upscaler,
            api_server(upscaler, limits, workers) as server,
        ):
            say(
                f"{upscaler.manifest.name} ({upscaler.bundle.digest}) on {upscaler.device} in {upscaler.precision}"
            )
            if host not in LOOPBACK:
                say(
                    f"{host} is reached by other machines, without password and encryption: put a proxy before it"
                )
            print(url_of(listener), flush=True)
            say("Ctrl-C stops the server when the photos at work are done; a second one stops them too")
            server.run([listener])
    except KeyboardInterrupt:
        say("stopped")
    return OK
