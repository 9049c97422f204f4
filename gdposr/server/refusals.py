"""What the server says instead of a picture: a status and one sentence with the remedy."""

import os
import re
from pathlib import Path

from gdposr.console import one_line
from gdposr.server.jobs import Closed, Full

GONE = 499  # the client has left; nobody reads it, it is counted
RETRY = 5  # seconds, where nothing better is known


class Refusal(Exception):
    """An answer without a picture. retry_after: seconds, where trying again makes sense."""

    def __init__(self, status: int, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.retry_after = status, sentence, retry_after


def refusal_of(error: Exception, folder: Path) -> Refusal | None:
    """The answer for what went wrong with a photo. None: a fault of the server, which is no business of the client.

    folder: that of the requests, whose names are left out of the sentence.
    """
    from runtime.errors import ImageError, OutOfMemory, SettingError

    if isinstance(error, Refusal):
        return error
    if isinstance(error, Full):
        return Refusal(429, f"expected a free place in the queue, got a full one: {error}", error.retry_after)
    if isinstance(error, Closed):
        return Refusal(503, "the server is being stopped: try again later", RETRY)
    # a full or broken disk, whatever it has become on its way
    causes = (error, error.__cause__)
    if any(isinstance(cause, OSError) and cause.errno is not None for cause in causes):
        return Refusal(503, "the server has no space for this photo now: try again later", RETRY)
    if isinstance(error, OutOfMemory | MemoryError):
        return Refusal(503, "the server has too little memory for this photo now: try again later", RETRY)
    if isinstance(error, ImageError | SettingError):
        inside = re.escape(f"{folder}{os.sep}") + r"[^/\\]+[/\\]"
        return Refusal(422, re.sub(inside, "", one_line(error)))
    return None
