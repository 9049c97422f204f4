"""`gdposr serve` and `make web`: headers, errors, a clean end, and a page that is its own source. Without a browser."""

import gzip
import hashlib
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
from browsers import serving

from gdposr.web.build import main
from gdposr.web.site import BUDGET, page_bytes, site_files
from runtime.bundle.reader import Bundle


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return site_files(Bundle.open())


@pytest.fixture(scope="module")
def port(files: dict[str, bytes]) -> Iterator[int]:
    with serving(files) as server:
        yield server.server_address[1]


def ask(port: int, path: str, method: str = "GET") -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response, content


def test_headers_isolate_the_page_and_allow_nothing_from_elsewhere(port: int) -> None:
    response, content = ask(port, "/?seed=7")
    assert (response.status, content[:15]) == (200, b"<!doctype html>")
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"unsafe-inline|'unsafe-eval'|https?:|\*", policy)
    for path, kind in (("page.js", "text/javascript"), ("ort/ort.wasm.min.mjs", "text/javascript"), ("style.css", "text/css"),
                       ("manifest.webmanifest", "application/manifest+json"), ("icon.svg", "image/svg+xml")):  # fmt: skip
        assert ask(port, f"/{path}")[0].headers["Content-Type"].startswith(kind)
    response, content = ask(port, "/page.js", "HEAD")
    assert (response.status, content) == (200, b"")
    assert int(response.headers["Content-Length"]) > 1000


@pytest.mark.parametrize(
    "path", ["/none.js", "/../pyproject.toml", "/..%2f..%2fpyproject.toml", "//etc/passwd", "/bundle/"]
)
def test_nothing_else_is_served(port: int, path: str) -> None:
    response, content = ask(port, path)
    assert (response.status, content) == (404, b"There is no such file here.\n")


def test_serves_a_bundle_and_stops_cleanly(root: Path, toy_bundle: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "gdposr",
        "serve",
        "--no-browser",
        "--port",
        "0",
        "--bundle",
        str(toy_bundle),
    ]
    process = subprocess.Popen(
        command,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),  # a job in the background ignores it
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", url)
    assert found, url
    port = int(found[1])
    assert json.loads(ask(port, "/bundle/manifest.json")[1])["name"] == "toy"
    # a second one on this port is told so
    second = subprocess.run(
        [*command[:-3], str(port)], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert second.returncode == 2
    assert f"expected a free port, got {port}" in second.stderr
    # another machine would come by another address
    with socket.socket() as other:
        other.settimeout(2)
        assert other.connect_ex(("127.0.0.2", port)) != 0
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "stopped" in err
    assert out == ""


def test_opens_the_browser(monkeypatch: pytest.MonkeyPatch, gdposr, toy_bundle: Path) -> None:
    opened: list[str] = []

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("gdposr.web.server.PageServer.serve_forever", interrupt)
    code, out, _ = gdposr("serve", "--port", 0, "--bundle", toy_bundle)
    assert code == 0
    assert opened == [out.strip()]


def test_bundle_that_no_browser_runs_is_refused(gdposr, toy_copy: Path) -> None:
    path = toy_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["size"] |= {"overlap": 8}
    path.write_text(json.dumps(manifest))
    code, _, err = gdposr("serve", "--no-browser", "--port", 0, "--bundle", toy_copy)
    assert code == 2
    assert "whose tiles meet" in err
    (toy_copy / "encoder.int8.onnx").write_bytes(b"altered")
    code, _, err = gdposr("serve", "--no-browser", "--port", 0, "--bundle", toy_copy)
    assert code == 2


def test_built_page_is_what_is_served_and_what_the_sources_are(
    root: Path, files: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "web"
    assert main(["--out", str(out)]) == 0
    assert "kB of at most 150" in capsys.readouterr().out
    built = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert built == files
    for path in (root / "runtime/web").rglob("*"):
        name = path.relative_to(root / "runtime/web").as_posix()
        if path.is_file() and name != "sw.js":
            assert built[name] == path.read_bytes()
    # the service worker keeps every file, under a name that changes with any of them
    worker = files["sw.js"].decode()
    listed = json.loads(re.search(r"const FILES = (\{.*?\});", worker, re.S)[1])  # type: ignore[index]
    assert listed.keys() == files.keys() - {"sw.js"} | {"./"}
    assert all(
        listed[name] == hashlib.sha256(files[name]).hexdigest()[:16] for name in listed.keys() - {"./"}
    )
    # again, in place of the first; a folder of something else stays
    assert main(["--out", str(out)]) == 0
    assert main(["--out", str(root / "docs")]) == 2
    assert "expected a new folder or one with an earlier page" in capsys.readouterr().err


def test_page_is_small_and_names_no_other_address(files: dict[str, bytes]) -> None:
    assert page_bytes(files) <= BUDGET
    for name, content in files.items():
        if not name.startswith(("ort/", "bundle/")):
            text = content.decode().replace('xmlns="http://www.w3.org/2000/svg"', "")
            assert not re.search(r"https?://", text), name
            assert not re.search(r"""(?:src|href|from|import\()\s*=?\s*["']/""", text), (
                f"{name} has an absolute path"
            )


def test_onnx_runtime_is_the_one_of_npm(root: Path) -> None:
    folder = root / "runtime/web/ort"
    listed = json.loads((folder / "ort.json").read_text())
    assert listed["version"] in (folder / "LICENSE").read_text()
    assert "MIT License" in (folder / "LICENSE").read_text()
    for name, digest in listed["sha256"].items():
        packed = folder / f"{name}.gz"
        content = gzip.decompress(packed.read_bytes()) if packed.exists() else (folder / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest, name
    assert {path.name.removesuffix(".gz") for path in folder.iterdir()} == {
        *listed["sha256"],
        "LICENSE",
        "ort.json",
    }
