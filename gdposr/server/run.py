"""Runs the server: opens its socket, stops at a signal, and removes its files."""

import errno
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvicorn

from gdposr.batch.library_warnings import route_warnings
from gdposr.console import UsageError
from gdposr.server.app import PATH, PhotoService, create_app
from gdposr.server.connections import ConnectionLimiter
from gdposr.server.jobs import JobQueue
from gdposr.server.limits import Limits
from gdposr.server.protocol import PatientProtocol
from gdposr.server.work import Answer, PhotoRequest, Work

if TYPE_CHECKING:
    from runtime.upscale.upscaler import Upscaler

# Hosts that no other machine can reach.
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


class ApiServer(uvicorn.Server):
    """uvicorn that refuses all queued photos when it stops."""

    def __init__(self, config: uvicorn.Config, queue: JobQueue[PhotoRequest, Answer]) -> None:
        super().__init__(config)
        self._queue = queue

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._queue.close()
        await super().shutdown(sockets)


def listening(host: str, port: int) -> socket.socket:
    """A socket to serve on. port 0: any free one. UsageError if the address is taken, unknown or not allowed."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        known = (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL)
        if error.errno not in known and not isinstance(error, socket.gaierror):
            raise
        raise UsageError(
            f"--host, --port: expected a free address of this machine, got {host} port {port} ({error.strerror}); "
            "choose another one, or port 0 for any"
        ) from error


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


@contextmanager
def api_server(upscaler: "Upscaler", limits: Limits, workers: int = 1) -> Iterator[ApiServer]:
    """A server to be run on a socket. At the end of the block its workers have stopped and its files are removed."""
    with route_warnings(), tempfile.TemporaryDirectory(prefix="gdposr-api-") as folder:
        queue = JobQueue(Work(upscaler, limits.max_pixels), workers, limits.waiting)
        facts = {
            "model": upscaler.manifest.name,
            "bundle": upscaler.bundle.digest,
            "device": upscaler.device,
            "precision": upscaler.precision,
        }
        service = PhotoService(queue, limits, Path(folder))
        app = create_app(service, float(upscaler.scale), facts)
        limited = ConnectionLimiter(
            app, PATH, service.metrics, lambda: len(server.server_state.connections), limits.connections
        )
        config = uvicorn.Config(
            limited,
            loop="asyncio",
            http=PatientProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="critical",  # the app logs its own errors; malformed requests are not logged
            server_header=False,
            # photos at work and answers being sent get this long to finish; a second Ctrl-C ends them
            timeout_graceful_shutdown=round(limits.timeout + limits.transfer_timeout),
        )
        server = ApiServer(config, queue)
        try:
            yield server
        finally:
            queue.abort()
