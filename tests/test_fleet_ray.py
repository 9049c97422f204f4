"""Archives on a real Ray cluster of several nodes on this machine: workers that die, full disks, drivers that are killed, S3."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import files_in
from PIL import Image

ray = pytest.importorskip("ray", reason="needs the extra ray: pip install 'gdposr[ray]'")

import pyarrow.parquet as pq  # noqa: E402

from gdposr.batch.task import Options, Outcome  # noqa: E402
from gdposr.fleet import cluster as fleet_cluster  # noqa: E402
from gdposr.fleet.photos import ArchivePhoto  # noqa: E402
from gdposr.fleet.report import REPORT  # noqa: E402
from gdposr.fleet.worker import Result, Settings, Worker  # noqa: E402

pytestmark = pytest.mark.slow

NODES = 3  # that work, each with one processor; the head does not
PHOTOS = 500
LONG = 500  # seconds; a run that takes as long has failed
# As for the plain command beside it: Ray's own habit is to give way to everything else.
ENVIRONMENT = {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on a file system of its own with 64 kB."""
    folder = tmp_path_factory.mktemp("small disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs to mount a tmpfs, as root may")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def nodes(small_disk: Path) -> Iterator[str]:
    """The address of a cluster. One of its nodes has temporary files on the small disk."""
    from ray.cluster_utils import Cluster

    former = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for number in range(NODES):
        cluster.add_node(num_cpus=1, env_vars={"TMPDIR": str(small_disk)} if number == 0 else {})
    cluster.wait_for_nodes()
    yield cluster.address
    cluster.shutdown()
    for name, value in former.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 small photos in folders, and one that is broken."""
    folder, rng = tmp_path_factory.mktemp("archive"), np.random.default_rng(0)
    for number in range(PHOTOS):
        path = folder / f"{number // 100}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 20, 3), dtype=np.uint8)).save(path)
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def plain(archive: Path, root: Path, toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the plain command makes of the archive."""
    out = tmp_path_factory.mktemp("plain")
    words = ("upscale", archive, "-o", out, "--bundle", toy_bundle)
    assert begin(root, *words).wait(LONG) == 1
    return out


def begin(root: Path, *words: object, **environment: str) -> "subprocess.Popen[str]":
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "gdposr", *map(str, words)],
        cwd=root,
        env={**os.environ, **ENVIRONMENT, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_in(folder) if name != REPORT}


def pictures(folder: Path) -> list[Path]:
    return list(folder.rglob("[!.]*.png"))


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def workers() -> list[int]:
    """Process numbers of the workers that enlarge on this machine's nodes."""
    found = subprocess.run(["pgrep", "-f", "^ray::MapWorker"], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


def test_500_photos_a_killed_worker_and_a_killed_driver(
    nodes: str, archive: Path, plain: Path, root: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("upscale", archive, "-o", out, "--bundle", toy_bundle, "--skip-existing", "--ray", nodes)
    driver = begin(root, *words)
    until(lambda: len(pictures(out)) > 60)
    victim = workers()[0]
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(pictures(out)) > 150)
    assert victim not in workers()
    driver.terminate()
    _, told = driver.communicate(timeout=LONG)
    assert driver.returncode == 143, told
    assert "terminated; finished files stay" in told
    until(lambda: not workers())
    done = len(pictures(out))
    statuses = [row["status"] for row in pq.read_table(out / REPORT).to_pylist()]
    assert len(statuses) == PHOTOS + 1
    assert 0 < statuses.count("ok") <= done
    assert statuses.count("unfinished") + statuses.count("ok") >= PHOTOS

    driver = begin(root, *words)
    until(lambda: len(pictures(out)) > done + 60)
    driver.kill()
    driver.communicate()
    done = len(pictures(out))
    assert done < PHOTOS, "the driver was killed too late for this test to mean anything"
    until(lambda: not workers())  # Ray ends them with their driver
    kept = {path: path.stat().st_mtime_ns for path in pictures(out)}

    driver = begin(root, *words)
    _, told = driver.communicate(timeout=LONG)
    assert driver.returncode == 1, told
    assert f"failed: {archive}/broken.jpg: expected a picture" in told
    assert contents(out) == contents(plain), "nothing lost, no partial file, the same bytes"
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "nothing twice"
    rows = pq.read_table(out / REPORT).to_pylist()
    assert len({row["source"] for row in rows}) == len(rows) == PHOTOS + 1
    statuses = [row["status"] for row in rows]
    assert statuses.count("failed") == 1
    assert statuses.count("skipped") == len(kept)
    assert statuses.count("ok") == PHOTOS - len(kept)
    assert len({row["node"] for row in rows if row["status"] == "ok"}) == NODES


def test_a_full_disk_on_one_node(
    nodes: str, small_disk: Path, root: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    """From and to a store by way of each node's disk. The photos are too large for the small one."""
    rng = np.random.default_rng(1)
    (tmp_path / "in").mkdir()
    for number in range(24):
        pixels = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number}.png")
    out = tmp_path / "out"
    words = (
        "upscale",
        (tmp_path / "in").as_uri(),
        "-o",
        out.as_uri(),
        "--bundle",
        toy_bundle,
        "--ray",
        nodes,
    )
    driver = begin(root, *words)
    _, told = driver.communicate(timeout=LONG)
    assert driver.returncode == 0, told
    assert (
        begin(root, "upscale", tmp_path / "in", "-o", tmp_path / "plain", "--bundle", toy_bundle).wait(LONG)
        == 0
    )
    assert contents(out) == contents(tmp_path / "plain")
    rows = pq.read_table(out / REPORT).to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 24
    assert len({row["node"] for row in rows}) == NODES - 1, "the node with the full disk has done nothing"
    assert files_in(small_disk) == []


class Deadly(Worker):
    """A worker that one photo takes along, as a decoder's crash or the end of memory would."""

    def enlarge(self, photo: ArchivePhoto) -> Result:
        if photo.stem == "deadly":
            os._exit(1)
        return Result(photo.number, Outcome(photo.source, "ok"), 1.0, node=self._node)


def test_a_photo_that_kills_its_worker_harms_no_other(
    nodes: str, root: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from runtime.bundle.reader import Bundle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(fleet_cluster, "Worker", Deadly)
    monkeypatch.setattr(fleet_cluster, "REPEATS", 1)
    monkeypatch.setattr(fleet_cluster, "ROUNDS", 2)
    monkeypatch.chdir(root)
    options = Options(0, 1, "all", 4.0, 95, Bundle.open(toy_bundle).digest)
    out = str(tmp_path)
    settings = Settings(options, out, out, str(toy_bundle), "cpu", "int8", 1, None, None, None)
    photos = [
        ArchivePhoto(number, f"{number}.png", f"/{number}.png", None, "", "deadly" if number == 5 else "a")
        for number in range(24)
    ]
    with fleet_cluster.cluster(nodes):
        results = {
            result.number: result for result in fleet_cluster.enlarged(photos, settings, {"num_cpus": 1})
        }
    assert sorted(results) == list(range(24))
    failed = [number for number, result in results.items() if result.outcome.status != "ok"]
    assert failed == [5]
    assert "died at it 4 times" in (results[5].outcome.error or "")


def test_from_and_to_s3(
    nodes: str, root: Path, toy_bundle: Path, archive: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By pyarrow's S3 against moto's server, which holds everything in memory."""
    server = pytest.importorskip("moto.server", reason="needs moto: pip install 'gdposr[dev]'")
    from pyarrow.fs import FileSelector, FileType, S3FileSystem

    keys = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    store = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    store.start()
    try:
        host, port = store.get_host_and_port()
        endpoint = f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        bucket = S3FileSystem(
            access_key="key",
            secret_key="secret",
            endpoint_override=f"{host}:{port}",
            scheme="http",
            region="us-east-1",
            allow_bucket_creation=True,
        )
        bucket.create_dir("archive")
        photos = sorted(archive.glob("0/*.png"))[:20]
        for photo in (*photos, archive / "broken.jpg"):
            with bucket.open_output_stream(f"archive/photos/{photo.name}") as stream:
                stream.write(photo.read_bytes())
        # the keys of an address reach workers whose nodes know none
        address = f"s3://key:secret@archive/photos{endpoint}"
        words = ("upscale", address, "-o", f"s3://key:secret@archive/large{endpoint}", "--bundle", toy_bundle)
        driver = begin(root, *words, "--skip-existing", "--ray", nodes, **keys)
        _, told = driver.communicate(timeout=LONG)
        assert driver.returncode == 1, told
        assert "failed: s3://archive/photos/broken.jpg: expected a picture" in told
        assert "secret" not in told
        found = {
            info.base_name: bucket.open_input_stream(info.path).read()
            for info in bucket.get_file_info(FileSelector("archive/large", recursive=True))
            if info.type == FileType.File
        }
        rows = pq.read_table("archive/large/" + REPORT, filesystem=bucket).to_pylist()
        assert found.pop(REPORT)
        assert found == {
            f"{photo.stem}_x4_seed0.png": (plain / "0" / f"{photo.stem}_x4_seed0.png").read_bytes()
            for photo in photos
        }
        assert sorted(row["status"] for row in rows) == ["failed", *["ok"] * 20]
        assert all("secret" not in str(row) for row in rows)
        again = begin(root, *words, "--skip-existing", "--ray", nodes, **keys)
        _, told = again.communicate(timeout=LONG)
        assert "20 skipped, their outputs exist; 1 failed" in told
    finally:
        store.stop()
