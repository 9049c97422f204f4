"""A server of fixed files on 127.0.0.1, for the page of `gdposr serve`."""

import errno
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import unquote, urlsplit

from gdposr.console import UsageError
from gdposr.web.site import TYPES

# This machine alone can reach it.
ADDRESS: Final = "127.0.0.1"
# The page may load only its own files, and is isolated, which WebAssembly needs for threads.
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; img-src 'self' blob:; "
        "style-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class PageServer(ThreadingHTTPServer):
    """Serves files from memory, each with the headers. port 0: any free one, see `url`. UsageError if the port is taken."""

    daemon_threads = True
    # Windows would let two servers share a port.
    allow_reuse_address = not hasattr(errno, "WSAEADDRINUSE")

    def __init__(self, files: dict[str, bytes], port: int, headers: Mapping[str, str] = HEADERS) -> None:
        self.files = files
        self.headers = headers
        try:
            super().__init__((ADDRESS, port), PageHandler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise UsageError(
                f"--port: expected a free port, got {port}, which is taken or not allowed; "
                "choose another one, or 0 for any"
            ) from error

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_address[1]}/"


class PageHandler(BaseHTTPRequestHandler):
    """GET and HEAD of the files."""

    server: PageServer
    protocol_version = "HTTP/1.1"
    server_version = "gdposr"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path).removeprefix("/") or "index.html"
        content = self.server.files.get(path)
        status = HTTPStatus.OK
        if content is None:
            status, content, path = HTTPStatus.NOT_FOUND, b"There is no such file here.\n", "none.txt"
        self.send_response(status)
        self.send_header(
            "Content-Type",
            TYPES.get(
                PurePosixPath(path).suffix,
                "application/octet-stream" if status == HTTPStatus.OK else "text/plain",
            ),
        )
        self.send_header("Content-Length", str(len(content)))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing. The page shows errors."""
