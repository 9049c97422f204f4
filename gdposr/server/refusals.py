"""The server's errors: a status and one sentence with the remedy."""

import os
import re
from pathlib import Path

from gdposr.console import one_line
from gdposr.server.jobs import Closed, Full

# The client has left. Used for counting only.
GONE = 499
# Seconds to wait, if no better estimate is known.
RETRY = 5


class Refusal(Exception):
    """An answer without a picture. retry_after: seconds, if trying again makes sense."""

    def __init__(self, status: int, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.retry_after = status, sentence, retry_after


def refusal_of(error: Exception, folder: Path) -> Refusal | None:
    """The answer for a failed photo. None: an internal error, whose details are not sent to the client.

    folder: holds the requests' folders. Their names are left out of the sentence.
    """
    from runtime.errors import ImageError, OutOfMemory, SettingError

    if isinstance(error, Refusal):
        return error
    if isinstance(error, Full):
        return Refusal(429, f"expected a free place in the queue, got a full one: {error}", error.retry_after)
    if isinstance(error, Closed):
        return Refusal(503, "the server is being stopped: try again later", RETRY)
    # a full or broken disk, also behind another exception
    causes = (error, error.__cause__)
    if any(isinstance(cause, OSError) and cause.errno is not None for cause in causes):
        return Refusal(503, "the server has no space for this photo now: try again later", RETRY)
    if isinstance(error, OutOfMemory | MemoryError):
        return Refusal(503, "the server has too little memory for this photo now: try again later", RETRY)
    if isinstance(error, ImageError | SettingError):
        inside = re.escape(f"{folder}{os.sep}") + r"[^/\\]+[/\\]"
        return Refusal(422, re.sub(inside, "", one_line(error)))
    return None
