"""docs/server.md: its commands and its Python work, its tables are those of the command."""

import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from api import Client, running
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra server: pip install 'gdposr[server]'")
pytest.importorskip("uvicorn", reason="needs the extra server: pip install 'gdposr[server]'")
pytest.importorskip("prometheus_client", reason="needs the extra server: pip install 'gdposr[server]'")

from runtime.upscale.upscaler import Upscaler

ADDRESS = "http://127.0.0.1:8484/"


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "server.md").read_text()


@pytest.fixture
def client(toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    (tmp_path / "requests").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "requests"))
    with Upscaler(toy_bundle, threads=1) as upscaler, running(upscaler, tmp_path / "requests") as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path, make_pixels) -> Path:
    Image.fromarray(make_pixels(24, 32)).save(tmp_path / "photo.jpg")
    return tmp_path


def at(client: Client, text: str) -> str:
    return text.replace(ADDRESS, f"http://127.0.0.1:{client.port}/")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_commands_work(page: str, client: Client, folder: Path) -> None:
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    commands = [line for line in blocks.splitlines() if line.startswith("curl ")]
    assert len(commands) >= 5
    for command in commands:
        result = subprocess.run(
            at(client, command).replace("curl ", "curl --silent --show-error ", 1),
            shell=True, cwd=folder, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    kinds = {"photo_large.png": "PNG", "photo_large.jpg": "JPEG", "third_version.png": "PNG"}
    for name, kind in kinds.items():
        with Image.open(folder / name) as image:
            assert image.format == kind
    with zipfile.ZipFile(folder / "versions.zip") as pack:
        assert len(pack.namelist()) == 4
        assert pack.read("photo_x4_seed3_s2.png") == (folder / "third_version.png").read_bytes()


def test_the_python_works(page: str, client: Client, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(at(client, code), "docs/server.md", "exec"), {})
    assert Image.open(folder / "photo_large.png").size == (128, 96)


def test_the_tables_have_every_option_parameter_and_status(page: str, gdposr) -> None:
    from gdposr.server.app import UpscaleQuery
    from gdposr.server.description import ANSWERS

    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page[page.index("## Limits and options") :]))
    known = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", gdposr("serve", "--help")[1]))
    assert options == known - {"--api", "--no-browser", "--help"}
    assert set(re.findall(r"^\| `(\w+)=", page, re.MULTILINE)) == set(UpscaleQuery.model_fields)
    assert set(map(int, re.findall(r"^\| (\d{3}) \|", page, re.MULTILINE))) == set(ANSWERS) - {200} | {500}


def test_plain_serve_needs_none_of_the_extra_s_packages(run_python) -> None:
    code = (
        "import sys\n"
        "for name in ('fastapi', 'uvicorn', 'starlette', 'pydantic', 'prometheus_client'): sys.modules[name] = None\n"
        "import gdposr.commands.serve, gdposr.web.server, gdposr.web.site, gdposr.server.jobs\n"
        "from gdposr.cli import main\n"
        "sys.exit(main(['serve', '--help']))"
    )
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr
