"""Receives a photo: writes the body of a request to a file, within limits on bytes and time."""

import asyncio
from pathlib import Path

from starlette.requests import ClientDisconnect, Request

from gdposr.server.limits import Limits
from gdposr.server.refusals import GONE, Refusal


async def receive_photo(request: Request, path: Path, limits: Limits) -> None:
    """Write the body to a new file. Refusal if it is a form, too large or too slow, or if the client has left."""
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise Refusal(
            415,
            "expected the bytes of a photo as the body, got a form: send the file itself, as curl does with --data-binary @photo.jpg",
        )
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limits.max_bytes:
        raise _too_large(limits, f"{int(stated) / 1e6:.1f} MB")
    received = 0
    try:
        async with asyncio.timeout(limits.transfer_timeout):
            with path.open("xb") as file:
                async for part in request.stream():
                    received += len(part)
                    if received > limits.max_bytes:
                        raise _too_large(limits, "more")
                    file.write(part)
    except TimeoutError:
        raise Refusal(
            408,
            f"expected the whole photo within {limits.transfer_timeout:g} s, got {received} bytes: use a smaller file or a faster line",
        ) from None
    except ClientDisconnect:
        raise Refusal(GONE, "the client has left") from None


def _too_large(limits: Limits, got: str) -> Refusal:
    return Refusal(
        413,
        f"expected a photo of at most {limits.max_bytes / 1e6:.1f} MB, got {got}: "
        "send a smaller one, or raise --max-bytes of the server",
    )
