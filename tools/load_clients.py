"""The clients of `tools/server_load.py`: good, slow, cut off, hostile."""

import contextlib
import random
import re
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException

# Where the server listens.
HOST = "127.0.0.1"
# Bytes that a bomb unpacks to.
BOMB_BYTES = 64 << 20
# Bytes of a photo's file that the server is started with.
MAX_BYTES = 1 << 20
# Seconds after which a client gives up. No answer of the server takes as long.
PATIENCE = 90.0


@dataclass
class Load:
    """State that the clients share."""

    port: int
    """Port of the server, on `HOST`."""
    photos: list[tuple[bytes, str, bytes]]
    """File, query, and the command's picture of it."""
    end: float
    """Time at which the clients stop, in seconds of time.monotonic."""
    counts: Counter[str] = field(default_factory=Counter)
    """"kind of client: outcome" -> answers."""
    faults: list[str] = field(default_factory=list)
    """Answers that the server should not have given, in words."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while counts and faults change."""

    def count(self, kind: str, outcome: str) -> None:
        with self.lock:
            self.counts[f"{kind}: {outcome}"] += 1

    def fault(self, text: str) -> None:
        with self.lock:
            self.faults.append(text)

    def judge(self, kind: str, status: int, body: bytes, expected: bytes) -> None:
        """Count an answer to a good photo. It must be the command's bytes, or a refusal for lack of a place or of time.

        kind: of client.
        status: of the answer.
        body: of the answer.
        expected: the command's picture.
        """
        if status == 200 and body == expected:
            self.count(kind, "200, the command's bytes")
        elif status in (429, 503, 504):
            self.count(kind, str(status))
        else:
            self.fault(f"{kind}: status {status}, {len(body)} bytes: {body[:200]!r}")


def connected(load: Load) -> HTTPConnection:
    return HTTPConnection(HOST, load.port, timeout=PATIENCE)


def steady(load: Load, draw: random.Random) -> None:
    """Sends a photo and takes the answer. After Retry-After it waits, but not as long as told."""
    photo, query, expected = draw.choice(load.photos)
    with contextlib.closing(connected(load)) as line:
        line.request("POST", f"/v1/upscale?{query}", photo)
        response = line.getresponse()
        load.judge("steady", response.status, response.read(), expected)
        if response.status != 200:
            if "Retry-After" not in response.headers and response.status != 504:
                load.fault(f"steady: {response.status} without Retry-After")
            time.sleep(min(1.0, float(response.headers.get("Retry-After", 1))))


def head(photo: bytes, query: str) -> bytes:
    return (
        f"POST /v1/upscale?{query} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(photo)}\r\n\r\n".encode()
    )


def slow_sender(load: Load, draw: random.Random) -> None:
    """Sends a photo in twenty parts."""
    photo, query, expected = draw.choice(load.photos)
    step = len(photo) // 20 + 1

    def parts() -> Iterator[bytes]:
        for at in range(0, len(photo), step):
            time.sleep(0.1)
            yield photo[at : at + step]

    with contextlib.closing(connected(load)) as line:
        line.request("POST", f"/v1/upscale?{query}", parts(), {"Content-Length": str(len(photo))})
        response = line.getresponse()
        load.judge("slow sender", response.status, response.read(), expected)


def slow_reader(load: Load, draw: random.Random) -> None:
    """Takes the answer in small parts through a small window."""
    photo, query, expected = draw.choice(load.photos)
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.settimeout(PATIENCE)
        line.connect((HOST, load.port))
        line.sendall(head(photo, query) + photo)
        received = b""
        while not (found := re.search(rb"content-length: (\d+)\r\n(?:.*\r\n)*?\r\n", received)):
            received += line.recv(100)
        while len(received) < found.end() + int(found[1]):
            time.sleep(0.02)
            received += line.recv(4096)
    load.judge("slow reader", int(received[9:12]), received[found.end() :], expected)


def cut_while_sending(load: Load, draw: random.Random) -> None:
    photo, query, _ = draw.choice(load.photos)
    with socket.create_connection((HOST, load.port), timeout=PATIENCE) as line:
        line.sendall((head(photo, query) + photo)[: draw.randrange(1, 150 + len(photo))])
        time.sleep(draw.uniform(0, 0.5))
    load.count("cut while sending", "left")


def cut_while_waiting(load: Load, draw: random.Random) -> None:
    photo, query, _ = draw.choice(load.photos)
    with socket.create_connection((HOST, load.port), timeout=PATIENCE) as line:
        line.sendall(head(photo, query) + photo)
        time.sleep(draw.uniform(0, 0.5))
        if draw.random() < 0.5:  # a reset instead of an end
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    load.count("cut while waiting", "left")


def bombs() -> dict[str, bytes]:
    """Name -> a file or body that would cost much memory or time."""
    zeros = zlib.compress(bytes(BOMB_BYTES), 1)

    def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
        header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        parts = [b"\x89PNG\r\n\x1a\n"]
        for kind, content in (header, *chunks, (b"IEND", b"")):
            parts += [
                struct.pack(">I", len(content)),
                kind,
                content,
                struct.pack(">I", zlib.crc32(kind + content)),
            ]
        return b"".join(parts)

    return {
        "huge header": png(2**31 - 1, 2**31 - 1, (b"IDAT", zeros[:1000])),
        "above the limit": png(4000, 4000, (b"IDAT", zeros)),
        "packed pixels": png(24, 20, (b"IDAT", zeros)),
        "packed text": png(24, 20, (b"zTXt", b"k\0\0" + zeros), (b"IDAT", zlib.compress(bytes(20 * 73)))),
        "no picture": random.Random(0).randbytes(50_000),
        "too many bytes": bytes(MAX_BYTES + 1),
    }


def bomber(load: Load, draw: random.Random, files: dict[str, bytes]) -> None:
    """Sends bombs, which must be refused, or read up to their stated size at most."""
    name, content = draw.choice(sorted(files.items()))
    with contextlib.closing(connected(load)) as line:
        line.request("POST", "/v1/upscale?scale=1", content)
        response = line.getresponse()
        body = response.read()
    if response.status in (413, 422, 429, 503, 504) or (response.status == 200 and name.startswith("packed")):
        load.count("bombs", f"{name} {response.status}")
    else:
        load.fault(f"bomb {name}: status {response.status}: {body[:200]!r}")


def babbler(load: Load, draw: random.Random) -> None:
    """Speaks no HTTP, or stops in the middle of a line."""
    said = draw.choice((draw.randbytes(300), b"POST /v1/upsc", b"GET " + b"a" * 100_000, b"\r\n" * 50, b""))
    with socket.create_connection((HOST, load.port), timeout=PATIENCE) as line:
        line.sendall(said)
        time.sleep(draw.uniform(0, 0.5))
    load.count("no HTTP", "left")


def clients(number: int) -> list[str]:
    """The kind of each client: of 32 half are steady."""
    kinds = [
        "steady",
        "slow sender",
        "steady",
        "cut while waiting",
        "steady",
        "bomber",
        "steady",
        "slow reader",
    ]
    kinds += ["steady", "cut while sending", "steady", "slow sender", "steady", "bomber", "steady", "babbler"]
    return [kinds[k % len(kinds)] for k in range(number)]


def work(load: Load, kind: str, seed: int, files: dict[str, bytes]) -> None:
    """One client until the time is over.

    load: the clients' shared state.
    kind: of client.
    seed: of its choices.
    files: name -> hostile file, for the bomber.
    """
    acts: dict[str, Callable[[Load, random.Random], None]] = {
        "steady": steady,
        "slow sender": slow_sender,
        "slow reader": slow_reader,
        "cut while sending": cut_while_sending,
        "cut while waiting": cut_while_waiting,
        "bomber": lambda load, draw: bomber(load, draw, files),
        "babbler": babbler,
    }
    draw = random.Random(seed)
    while time.monotonic() < load.end:
        try:
            acts[kind](load, draw)
        except (ConnectionResetError, BrokenPipeError):
            if kind not in ("cut while sending", "cut while waiting", "babbler"):
                load.fault(f"{kind}: the server has cut the line")
        except (HTTPException, OSError) as error:
            load.fault(f"{kind}: {type(error).__name__}: {error}")
