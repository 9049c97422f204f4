"""Limits the number of connections, and counts all answers, also those that no route gives."""

from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gdposr.server.metrics import Metrics
from gdposr.server.refusals import RETRY


class ConnectionLimiter:
    """An ASGI app around another one.

    app: the inner app.
    path: its answers are counted by status.
    metrics: the counts.
    connections: tells how many there are now. Above `most` every request gets 503 at once.
    most: limit on connections.
    """

    def __init__(
        self,
        app: ASGIApp,
        path: str,
        metrics: Metrics,
        connections: Callable[[], int],
        most: int,
    ) -> None:
        self._app, self._path, self._metrics = app, path, metrics
        self._connections, self._most = connections, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.answers.labels(message["status"]).inc()
            await send(message)

        app = self._app
        if self._connections() > self._most:
            sentence = f"expected at most {self._most} connections, got more: try again later"
            app = JSONResponse({"error": sentence}, 503, headers={"Retry-After": str(RETRY)})
        here = scope["type"] == "http" and scope["path"] == self._path
        await app(scope, receive, counted if here else send)
