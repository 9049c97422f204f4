"""`gdposr serve --api`: the command's bytes over HTTP, refusals with their reasons, faults, what else is served, its end."""

import errno
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from api import HOST, SMALL, Client, reply, until
from mutations import png
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra server: pip install 'gdposr[server]'")
pytest.importorskip("uvicorn", reason="needs the extra server: pip install 'gdposr[server]'")
pytest.importorskip("prometheus_client", reason="needs the extra server: pip install 'gdposr[server]'")

from gdposr.console import UsageError
from gdposr.server import app
from gdposr.server.work import Answer, Work
from runtime.errors import ImageError
from runtime.image.read.decode import read_photo
from runtime.upscale import upscaler


@pytest.fixture(scope="module")
def client(start_server: Callable) -> Iterator[Client]:
    with start_server(**SMALL) as opened:
        yield opened


def test_the_limit_of_the_temperature_is_the_runtimes() -> None:
    assert app.HOTTEST == upscaler.HOTTEST


# the command's bytes


@pytest.mark.parametrize(
    ("name", "channels", "query", "options", "suffix"),
    [
        ("a.png", 3, "", "", ".png"),
        ("a.jpg", 3, "seed=3&scale=2.5", "--seed 3 --scale 2.5", ".png"),
        ("a.png", 1, f"seed={2**64 - 1}", f"--seed {2**64 - 1}", ".png"),
        ("a.png", 4, "sample=2", "--sample 2", ".png"),
        ("a.png", 3, "format=jpeg&quality=80&seed=1", "--quality 80 --seed 1", ".jpg"),
        ("a.webp", 4, "format=webp", "", ".webp"),
        ("a.jpg", 3, "strip=true", "--strip", ".png"),
        ("a.png", 3, "temperature=1.5&seed=2", "--temperature 1.5 --seed 2", ".png"),
    ],
)
def test_answers_are_the_command_s_bytes(
    client: Client, make_photo, gdposr, tmp_path: Path, name: str, channels: int, query: str, options: str, suffix: str
) -> None:  # fmt: skip
    photo, out = make_photo(name, 40, 52, channels), tmp_path / f"out{suffix}"
    code, _, errors = gdposr("upscale", photo, "-o", out, *options.split())
    assert code == 0, errors
    answer = client.upscale(photo, query)
    assert (answer.status, answer.headers["Content-Type"]) == (200, f"image/{Image.open(out).format.lower()}")
    assert answer.body == out.read_bytes()
    assert client.upscale(photo, query).body == answer.body


def test_metadata_and_16_bits_go_the_command_s_way_and_losses_are_noted(
    client: Client, gdposr, tmp_path: Path, make_pixels
) -> None:
    photo = tmp_path / "deep.png"
    Image.fromarray(make_pixels(20, 24, 1, dtype=np.uint16)[..., 0]).save(photo)
    for suffix, query in ((".png", ""), (".jpg", "format=jpeg")):
        out = tmp_path / f"out{suffix}"
        assert gdposr("upscale", photo, "-o", out)[0] == 0
        answer = client.upscale(photo, query)
        assert answer.body == out.read_bytes()
        notes = json.loads(answer.headers.get("Gdposr-Notes", "[]"))
        assert ["8 bits" in note for note in notes] == ([True] if suffix == ".jpg" else [])
        assert all(note.startswith("photo_x4_seed0.jpg: ") for note in notes)


def test_several_versions_are_a_zip_of_the_command_s_files(
    client: Client, make_photo, gdposr, tmp_path: Path
) -> None:
    photo = make_photo("photo.png")
    assert gdposr("upscale", photo, "-o", tmp_path / "large", "--seed", 7, "--samples", 3)[0] == 0
    answer = client.upscale(photo, "seed=7&samples=3")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/zip")
    with zipfile.ZipFile(io.BytesIO(answer.body)) as pack:
        found = {name: pack.read(name) for name in pack.namelist()}
    assert found == {path.name: path.read_bytes() for path in (tmp_path / "large").iterdir()}
    assert len(found) == 3
    assert client.upscale(photo, "seed=7&samples=3").body == answer.body
    single = client.upscale(photo, "seed=7&sample=1")
    assert single.body == found["photo_x4_seed7_s1.png"]


def test_two_workers_give_the_same_bytes(start_server, make_photo) -> None:
    photos = [make_photo(f"{k}.png", 40, 40, seed=k) for k in range(6)]
    with start_server() as one, start_server(workers=2) as two:
        expected = [one.upscale(photo).body for photo in photos]
        waiting = [two.begin(photo) for photo in photos]
        assert [reply(each.getresponse()).body for each in waiting] == expected


# refusals


def runtime_says(content: bytes, folder: Path, max_pixels: int) -> str:
    path = folder / "photo"
    path.write_bytes(content)
    with pytest.raises(ImageError) as refused:
        read_photo(path, max_pixels)
    return str(refused.value).replace(f"{folder}/", "")


@pytest.mark.parametrize("name", ["text", "empty", "cut", "large", "huge", "film"])
def test_a_bad_photo_is_refused_in_the_runtime_s_words(
    client: Client, make_photo, tmp_path: Path, name: str
) -> None:
    film, frames = io.BytesIO(), [Image.new("L", (8, 8), level) for level in (0, 255)]
    frames[0].save(film, "GIF", save_all=True, append_images=frames[1:])
    contents = {
        "text": b"no picture at all",
        "empty": b"",
        "cut": make_photo("cut.png").read_bytes()[:900],
        "large": make_photo("large.png", 70, 70).read_bytes(),
        "huge": png((b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)), (b"IEND", b"")),
        "film": film.getvalue(),
    }
    answer = client.upscale(contents[name])
    assert answer.status == 422
    assert answer.error == runtime_says(contents[name], tmp_path, SMALL["max_pixels"])
    assert str(client.folder) not in answer.error


def test_a_picture_the_format_cannot_hold_is_refused(client: Client, make_pixels, tmp_path: Path) -> None:
    pixels = make_pixels(12, 12, 4)
    pixels[:6, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    answer = client.upscale(tmp_path / "clear.png", "format=jpeg")
    assert answer.status == 422
    assert answer.error.startswith("photo_x4_seed0.jpg: JPEG cannot hold transparency")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("seed=-1", "seed: "),
        ("seed=x", "seed: "),
        (f"seed={2**64}", "seed: "),
        ("scale=4.5", "scale: "),
        ("scale=nan", "scale: "),
        ("samples=0", "samples: "),
        ("samples=9", "samples: expected at most 8, got 9"),
        ("samples=2&sample=1", "sample is one version"),
        ("format=tiff", "format: "),
        ("quality=101", "quality: "),
        ("temperature=2.1", "temperature: "),
        ("temperature=nan", "temperature: "),
        ("sampels=3", "unknown parameter 'sampels': expected some of seed, "),
    ],
)
def test_a_wrong_query_is_named(client: Client, make_photo, query: str, said: str) -> None:
    answer = client.upscale(make_photo("a.png"), query)
    assert answer.status == 422
    assert answer.error.startswith(said)


def test_too_many_bytes_are_refused_by_their_stated_length_and_by_their_count(client: Client) -> None:
    many = bytes(SMALL["max_bytes"] + 1)
    stated = client.ask("/v1/upscale", many)
    assert stated.status == 413
    assert "expected a photo of at most 0.2 MB" in stated.error
    parts = (many[at : at + 50_000] for at in range(0, len(many), 50_000))
    counted = client.ask("/v1/upscale", parts, "POST", {"Transfer-Encoding": "chunked"}, chunked=True)
    assert counted.status == 413
    assert client.upscale(many[:-1]).status == 422  # no picture, but not too large
    assert client.folders() == []


def test_a_refused_client_need_not_send_its_photo(client: Client) -> None:
    for head, status in (
        ("Content-Length: 1000000000", b"413"),
        ("Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 9", b"415"),
    ):
        with socket.create_connection((HOST, client.port), timeout=10) as line:
            line.sendall(f"POST /v1/upscale HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n".encode())
            assert line.recv(12) == b"HTTP/1.1 " + status


def test_other_places_and_methods(client: Client) -> None:
    assert (client.ask("/v1/nothing").status, client.ask("/v1/upscale").status) == (404, 405)


def test_a_client_that_leaves_while_it_sends_leaves_nothing(client: Client) -> None:
    gone = client.counted(499)
    with socket.create_connection((HOST, client.port)) as line:
        line.sendall(b"POST /v1/upscale HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\nabc")
        until(lambda: client.folders())
    until(lambda: client.counted(499) == gone + 1)
    assert client.folders() == []


# faults


@pytest.mark.parametrize(
    ("error", "status"),
    [(OSError(errno.ENOSPC, "full"), 503), (MemoryError(), 503), (RuntimeError("/secret/path"), 500)],
)
def test_a_fault_of_the_server_is_told_without_details(
    start_server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    status: int,
) -> None:
    def work(self: Work, job: object) -> Answer:
        if isinstance(error, OSError):
            raise ImageError("x: cannot be written") from error
        raise error

    with start_server() as client:
        monkeypatch.setattr(Work, "__call__", work)
        answer = client.upscale(b"abc")
        assert answer.status == status
        assert "secret" not in answer.error
        assert ("Retry-After" in answer.headers) == (status == 503)
        monkeypatch.undo()
        assert client.upscale(b"abc").status == 422
        assert client.folders() == []
    assert ("secret" in capsys.readouterr().err) == (status == 500)


# what else is served


def test_health_and_metrics(client: Client, make_photo) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    assert client.upscale(make_photo("a.png"), "samples=2").status == 200
    state = client.health()
    assert (state["status"], state["model"], state["waiting"], state["at_work"]) == ("ok", "toy", 0, 0)
    answer = client.ask("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    assert {"gdposr_answers", "gdposr_photo_seconds", "gdposr_photos_waiting", "gdposr_pictures"} <= set(
        families
    )
    assert families["gdposr_pictures"].samples[0].value >= 2


def test_the_description_names_every_parameter_and_answer_and_loads_nothing(client: Client) -> None:
    description = json.loads(client.ask("/openapi.json").body)
    operation = description["paths"]["/v1/upscale"]["post"]
    names = [each["name"] for each in operation["parameters"]]
    assert names == [
        "seed", "samples", "sample", "scale", "temperature", "format", "quality", "strip",
    ]  # fmt: skip
    assert set(operation["responses"]) == {"200", "408", "413", "415", "422", "429", "503", "504"}
    assert "requestBody" in operation
    answer = client.ask("/")
    page = answer.body.decode()
    assert all(name in page for name in names)
    assert not any(word in page for word in ("<script", "src=", "http:", "https:", "@import", "url("))
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert client.ask("/docs").body == answer.body


# the command


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_the_command_cleanly(
    root: Path, toy_bundle: Path, tmp_path: Path, make_photo, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "gdposr", "serve", "--api", "--port", "0", "--bundle", str(toy_bundle), "--threads", "1"],
        cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a job in the background ignores it
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = process.stdout.readline()
        client = Client(int(address.rsplit(":", 1)[1].strip("/\n")), tmp_path)
        first = client.begin(make_photo("large.png", 100, 100))
        until(lambda: client.health()["at_work"] == 1 or client.counted(200) == 1)
        process.send_signal(number)
        assert reply(first.getresponse()).status == 200
        for connection in client.connections:
            connection.close()
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert errors.endswith("gdposr: stopped\n")
    assert "Traceback" not in errors
    assert list(tmp_path.glob("gdposr-api-*")) == []


def test_the_command_names_the_extra_and_options_that_need_the_api(gdposr, monkeypatch) -> None:
    code, _, errors = gdposr("serve", "--max-bytes", "8M")
    assert code == 2
    assert "--max-bytes is for the server of programs: add --api" in errors
    monkeypatch.setattr("gdposr.forward.find_spec", lambda name: None if name == "fastapi" else object())
    code, _, errors = gdposr("serve", "--api")
    assert code == 2
    assert "--api needs fastapi" in errors
    assert 'pip install "gdposr[server]"' in errors


def test_a_taken_port_and_an_unknown_address_are_named() -> None:
    from gdposr.server.run import listening

    with listening(HOST, 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match=f"got 127.0.0.1 port {port}"):
            listening(HOST, port)
    with pytest.raises(UsageError, match=r"got no\.such\.name\.invalid port 0"):
        listening("no.such.name.invalid", 0)
