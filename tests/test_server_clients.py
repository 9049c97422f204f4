"""Clients of `gdposr serve --api` that are too many at once, too slow, stall or leave: each ends in time, and no file is left."""

import socket
import threading
from typing import Any

import pytest
from api import HOST, SMALL, reply, until

pytest.importorskip("fastapi", reason="needs the extra server: pip install 'gdposr[server]'")
pytest.importorskip("uvicorn", reason="needs the extra server: pip install 'gdposr[server]'")
pytest.importorskip("prometheus_client", reason="needs the extra server: pip install 'gdposr[server]'")

from gdposr.server.protocol import PatientProtocol
from gdposr.server.work import Answer, Work


class Gate:
    """Stands in for the work: waits until it is opened, and ends when its job is given up, unless it is deaf."""

    def __init__(self) -> None:
        self.open, self.deaf = threading.Event(), False
        self.size = 100

    def __call__(self, job) -> Answer:
        while not self.open.wait(0.01):
            if not self.deaf:
                job.check()
        path = job.wanted.folder / "photo_x4_seed0.png"
        path.write_bytes(bytes(self.size))
        return Answer(path, 1)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    made = Gate()
    monkeypatch.setattr(Work, "__call__", lambda self, job: made(job))
    return made


# too many at once


def test_a_full_queue_is_429_with_a_time_and_takes_photos_again(start_server, gate: Gate, make_photo) -> None:
    photo = make_photo("a.png")
    with start_server(waiting=1) as client:
        taken = [client.begin(photo), client.begin(photo)]
        until(lambda: client.health()["waiting"] == 1 and client.health()["at_work"] == 1)
        refused = client.upscale(photo)
        assert refused.status == 429
        assert 1 <= int(refused.headers["Retry-After"]) <= 120
        assert "queue" in refused.error
        assert client.health()["status"] == "ok"
        gate.open.set()
        assert [reply(each.getresponse()).status for each in taken] == [200, 200]
        assert client.upscale(photo).status == 200
        assert (client.counted(429), client.counted(200)) == (1, 3)


def test_too_many_uploads_at_once_are_429(start_server, gate: Gate) -> None:
    with start_server(uploads=1) as client, socket.create_connection((HOST, client.port)) as slow:
        slow.sendall(b"POST /v1/upscale HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
        until(lambda: client.folders())
        assert client.upscale(b"abc").status == 429
        slow.sendall(b"abcdef")
        gate.open.set()
        assert slow.recv(12) == b"HTTP/1.1 200"
        assert client.upscale(b"abc").status == 200


def test_too_many_connections_are_503_with_a_time(start_server) -> None:
    with start_server(connections=2) as client:

        def answered() -> bool:
            status = client.upscale(b"abc").status
            client.connections.pop().close()
            return status == 422

        idle = [socket.create_connection((HOST, client.port)) for _ in range(2)]
        refused = client.upscale(b"abc")
        assert (refused.status, "Retry-After" in refused.headers) == (503, True)
        assert "expected at most 2 connections" in refused.error
        for line in (*idle, *client.connections):
            line.close()
        until(answered)


def test_time_runs_out_at_work_and_in_the_queue(start_server, gate: Gate, make_photo) -> None:
    photo = make_photo("a.png")
    gate.deaf = True
    with start_server(timeout=1.5) as client:
        first = client.begin(photo)
        until(lambda: client.health()["at_work"] == 1)
        late = client.upscale(photo)
        assert (late.status, int(late.headers["Retry-After"]) >= 1) == (503, True)
        assert "has waited in the queue for 1.5 s" in late.error
        slow = reply(first.getresponse())
        assert slow.status == 504
        assert "expected the pictures within 1.5 s" in slow.error
        assert client.health()["at_work"] == 1  # its file stays until it lets go of it
        gate.deaf = False
        until(lambda: client.health()["at_work"] == 0)
        until(lambda: client.folders() == [])
        gate.open.set()
        assert client.upscale(photo).status == 200


def test_a_photo_that_comes_too_slowly_is_408(start_server) -> None:
    with start_server(transfer_timeout=0.3) as client, socket.create_connection((HOST, client.port)) as slow:
        slow.sendall(b"POST /v1/upscale HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\nabc")
        slow.settimeout(10)
        assert slow.recv(12) == b"HTTP/1.1 408"
        assert client.folders() == []


# clients that leave or stall


@pytest.mark.parametrize("place", ["at_work", "waiting"])
def test_a_client_that_leaves_ends_its_job(start_server, gate: Gate, make_photo, place: str) -> None:
    photo = make_photo("a.png")
    with start_server() as client:
        first = client.begin(photo)
        until(lambda: client.health()["at_work"] == 1)
        second = client.begin(photo)
        until(lambda: client.health()["waiting"] == 1)
        (first if place == "at_work" else second).close()
        until(lambda: client.health()["waiting"] == 0)
        until(lambda: client.counted(499) == 1)
        gate.open.set()
        stays = second if place == "at_work" else first
        assert reply(stays.getresponse()).status == 200
        until(lambda: client.folders() == [])


def test_work_itself_ends_when_the_client_leaves(
    start_server, monkeypatch: pytest.MonkeyPatch, make_photo
) -> None:
    """Through the real upscaler: its progress function is what stops it."""
    written, write = [], Work._write

    def counted(self: Work, *arguments: Any) -> None:
        write(self, *arguments)
        written.append(arguments)

    monkeypatch.setattr(Work, "_write", counted)
    with start_server() as client:
        first = client.begin(make_photo("large.png", 400, 400), "samples=8")
        until(lambda: client.health()["at_work"] == 1)
        first.close()
        until(lambda: client.health()["at_work"] == 0)
        until(lambda: client.folders() == [])
        assert client.counted(499) == 1
    assert len(written) < 8


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v1/upsc",
        b"POST /v1/upscale HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\nabc",
    ],
)
def test_a_client_that_never_goes_on_loses_its_connection(
    start_server, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(PatientProtocol, "patience", 1.0)
    with start_server(**SMALL) as client, socket.create_connection((HOST, client.port), timeout=10) as line:
        line.sendall(sent)
        received = b""
        try:
            while part := line.recv(1000):
                received += part
        except ConnectionResetError:
            pass
        assert received[:12] == (b"HTTP/1.1 413" if b"Length" in sent else b"")


@pytest.mark.parametrize("reads", [False, True])
def test_a_client_that_does_not_take_its_answer_loses_its_connection(
    start_server, gate: Gate, monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    """Neither one that stalls nor one that reads a little now and then may keep the answer's file for long."""
    monkeypatch.setattr(PatientProtocol, "stalled", 0.3)
    gate.open.set()
    gate.size = 30_000_000
    with start_server(transfer_timeout=1.0) as client, socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect((HOST, client.port))
        line.sendall(b"POST /v1/upscale HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
        line.settimeout(10)
        assert line.recv(12) == b"HTTP/1.1 200"

        def removed() -> bool:
            if reads:
                line.recv(100_000)
            return client.folders() == []

        until(removed)
        received = 0
        try:
            while part := line.recv(1 << 20):
                received += len(part)
        except ConnectionResetError:
            pass
        assert received < gate.size
        gate.size = 100
        assert client.upscale(b"abc").status == 200


# the end


def test_at_the_end_the_photo_at_work_is_finished_and_the_next_refused(start_server, gate: Gate) -> None:
    with start_server() as client:
        first = client.begin(b"abc")
        until(lambda: client.health()["at_work"] == 1)
        second = client.begin(b"abc")
        until(lambda: client.health()["waiting"] == 1)
        client.stop()
        refused = reply(second.getresponse())
        assert (refused.status, "Retry-After" in refused.headers) == (503, True)
        gate.open.set()
        assert reply(first.getresponse()).status == 200
    assert list(client.folder.glob("gdposr-api-*/*")) == []
