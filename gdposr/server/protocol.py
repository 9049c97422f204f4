"""HTTP/1.1 that closes the connection of a client that keeps the server waiting.

uvicorn waits for ever for the headers of a request, for the rest of a body that was refused, and for a client that does not take its
answer. `upload.py` limits the time of a body that is accepted.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# Seconds for the headers of a request, and for the rest of a body after it was refused.
PATIENCE: Final = 15.0
# Seconds in which a client must take the next part of its answer, some 64 kB.
STALLED: Final = 30.0


class Countdown:
    """Calls a function after some seconds, unless it is stopped before that."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop, seconds: float, action: Callable[[], None]) -> None:
        """Start the time. No effect while it runs."""
        if self._timer is None:
            self._timer = loop.call_later(seconds, action)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with time limits."""

    patience, stalled = PATIENCE, STALLED

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._owed, self._untaken = Countdown(), Countdown()
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._untaken.start(self.loop, self.stalled, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._untaken.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._owed.stop()
        self._untaken.stop()

    def _watch(self) -> None:
        """The time limit counts while the client still owes a part of a request that no handler reads."""
        unread = self.cycle is None or self.cycle.response_complete
        if unread and self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._owed.start(self.loop, self.patience, self.transport.abort)
        else:
            self._owed.stop()
