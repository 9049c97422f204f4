"""A server of `gdposr serve --api` in a thread of the test, and requests to it."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
LONG = 30.0  # seconds; a test that waits so long has failed
SMALL = {"max_bytes": 200_000, "max_pixels": 4000}  # limits of a server for small photos


@dataclass
class Reply:
    status: int
    headers: Any
    body: bytes = b""

    @property
    def error(self) -> str:
        return json.loads(self.body)["error"]


@dataclass
class Client:
    """Requests to one server."""

    port: int
    folder: Path
    """Where the server keeps what it is working on."""
    stop: Callable[[], None] = lambda: None
    """What a signal does."""
    connections: list[HTTPConnection] = field(default_factory=list)

    def ask(
        self,
        path: str,
        body: Any = None,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        chunked: bool = False,
    ) -> Reply:
        connection = self.connect()
        connection.request(
            method or ("GET" if body is None else "POST"), path, body, headers or {}, encode_chunked=chunked
        )
        return reply(connection.getresponse())

    def upscale(self, photo: bytes | Path, query: str = "") -> Reply:
        content = photo if isinstance(photo, bytes) else photo.read_bytes()
        return self.ask(f"/v1/upscale?{query}", content)

    def connect(self) -> HTTPConnection:
        self.connections.append(HTTPConnection(HOST, self.port, timeout=LONG))
        return self.connections[-1]

    def begin(self, photo: bytes | Path, query: str = "") -> HTTPConnection:
        """Send a whole photo and do not wait for the answer."""
        connection = self.connect()
        content = photo if isinstance(photo, bytes) else photo.read_bytes()
        connection.request("POST", f"/v1/upscale?{query}", content)
        return connection

    def health(self) -> dict[str, Any]:
        return json.loads(self.ask("/healthz").body)

    def counted(self, status: int) -> float:
        """How often the server has answered so."""
        text = self.ask("/metrics").body.decode()
        mark = f'gdposr_answers_total{{status="{status}"}} '
        return sum(float(line.removeprefix(mark)) for line in text.splitlines() if line.startswith(mark))

    def folders(self) -> list[Path]:
        """What the server has not removed of its requests."""
        return [each for folder in self.folder.glob("gdposr-api-*") for each in folder.iterdir()]


def reply(response: HTTPResponse) -> Reply:
    return Reply(response.status, response.headers, response.read())


def until(true: Callable[[], Any], seconds: float = LONG) -> None:
    """Wait for something to come about."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"did not come about within {seconds:g} s"
        time.sleep(0.02)


@contextmanager
def running(upscaler: Any, folder: Path, workers: int = 1, **limits: Any) -> Iterator[Client]:
    """A server with its files below a folder, which must be `tempfile.tempdir`."""
    from gdposr.server.limits import Limits
    from gdposr.server.run import api_server, listening

    with listening(HOST, 0) as listener, api_server(upscaler, Limits(**limits), workers) as server:
        client = Client(listener.getsockname()[1], folder, lambda: setattr(server, "should_exit", True))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield client
        finally:
            for connection in client.connections:
                connection.close()
            client.stop()
            thread.join(LONG)
            assert not thread.is_alive()
