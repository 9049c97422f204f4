"""Archives on Ray, what a worker does, without Ray: its bytes are the plain command's, its report, faults of a node, resume."""

import dataclasses
import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import files_in

pa = pytest.importorskip("pyarrow", reason="needs the extra ray: pip install 'gdposr[ray]'")
pytest.importorskip("ray", reason="needs the extra ray: pip install 'gdposr[ray]'")

import fleet_cases  # noqa: E402  (after importorskip)
import pyarrow.parquet as pq  # noqa: E402

from gdposr.batch.task import Options, Outcome  # noqa: E402
from gdposr.console import UsageError  # noqa: E402
from gdposr.fleet import cluster  # noqa: E402
from gdposr.fleet.photos import ArchivePhoto, Target, plan_photos  # noqa: E402
from gdposr.fleet.report import PARTS, REPORT, Report  # noqa: E402
from gdposr.fleet.worker import SCRATCH, Result, Settings, Worker, is_node_fault  # noqa: E402

archive, options = fleet_cases.archive, fleet_cases.options  # fixtures


def contents(folder: Path) -> dict[str, bytes]:
    """The pictures below a folder, without the report."""
    return {name: (folder / name).read_bytes() for name in files_in(folder) if name != REPORT}


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    """A folder's report by the file names of the photos, each once."""
    rows = pq.read_table(folder / REPORT).to_pylist()
    named = {Path(row["source"]).name: row for row in rows}
    assert len(named) == len(rows)
    return named


@pytest.fixture
def settings(options: Options, toy_bundle: Path, tmp_path: Path) -> Settings:
    out = str(tmp_path / "out")
    return Settings(options, out, out, str(toy_bundle), "cpu", "auto", 1, None, None, None)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--ray` without Ray: one worker in this process takes every photo."""

    @contextmanager
    def connected(_: str) -> Iterator[None]:
        yield

    def one_round(photos: list[ArchivePhoto], settings: Settings, *_: Any, **__: Any) -> Iterator[Result]:
        worker = Worker(settings)
        for photo in photos:
            yield Result.unpacked(worker({"photo": photo.packed()})["result"])

    def loaded(settings: Settings) -> tuple[dict[str, Any], dict[str, float]]:
        return cluster.facts_of(settings), {"num_cpus": 1}

    monkeypatch.setattr(cluster, "cluster", connected)
    monkeypatch.setattr(cluster, "loaded", loaded)
    monkeypatch.setattr(cluster, "_round", one_round)


# --- the worker ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--seed", "3", "--samples", "2", "--scale", "2"),
        ("--samples", "2", "--select", "best", "--compare"),
    ],
    ids=["plain", "samples", "best with a page"],
)
@pytest.mark.parametrize("as_store", [False, True], ids=["folder", "store"])
def test_bytes_are_the_plain_commands(
    gdposr: Any, here: None, archive: Path, tmp_path: Path, as_store: bool, words: tuple[str, ...]
) -> None:
    assert gdposr("upscale", archive, "-o", tmp_path / "plain", *words)[0] == 1
    source, out = (archive.as_uri(), (tmp_path / "out").as_uri()) if as_store else (archive, tmp_path / "out")
    code, _, err = gdposr("upscale", source, "-o", out, *words, "--ray")
    assert code == 1
    assert f"failed: {archive.as_uri() if as_store else archive}/broken.jpg: expected a picture" in err
    assert "6 photos: 5 done; 1 failed" in err
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_temperature_reaches_the_worker(settings: Settings) -> None:
    with dataclasses.replace(settings, temperature=1.5).open() as upscaler:
        assert upscaler.temperature == 1.5


def test_the_report_has_a_row_for_each_photo(
    gdposr: Any, here: None, archive: Path, tmp_path: Path, options: Options
) -> None:
    import hashlib

    words = ("upscale", archive, "-o", tmp_path / "out", "--seed", "3", "--ray")
    code, out, _ = gdposr(*words, "--json-lines")
    assert code == 1
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["type"] for line in lines] == ["file"] * 6 + ["summary"]
    rows = rows_of(tmp_path / "out")
    assert {name: row["status"] for name, row in rows.items()} == {
        **dict.fromkeys(("a.png", "b.jpg", "b.png", "c.png", "ä.png"), "ok"),
        "broken.jpg": "failed",
    }
    row = rows["c.png"]
    picture = tmp_path / "out/day 1/c_x4_seed3.png"
    assert row["output"] == [str(picture)]
    assert row["sha256"] == [hashlib.sha256(picture.read_bytes()).hexdigest()]
    assert (row["seed"], row["sample"], row["digest"], row["precision"]) == (3, [0], options.digest, "int8")
    assert row["milliseconds"] > 0
    assert (row["error"], row["notes"]) == (None, [])
    assert "expected a picture" in rows["broken.jpg"]["error"]
    assert files_in(tmp_path / "out").count(REPORT) == 1
    assert not (tmp_path / "out" / PARTS).exists()


def test_own_pictures_are_left_out_unless_they_are_named(
    gdposr: Any, here: None, archive: Path, tmp_path: Path
) -> None:
    assert gdposr("upscale", archive / "a.png", "-o", archive / "e.png")[0] == 0
    code, _, err = gdposr("upscale", archive, "-o", tmp_path / "out", "--ray")
    assert code == 1
    assert "1 left out, written by gdposr" in err
    assert rows_of(tmp_path / "out")["e.png"]["status"] == "own"
    assert gdposr("upscale", archive / "e.png", "-o", tmp_path / "out", "--ray")[0] == 0


def test_a_node_without_space_is_told_from_a_broken_photo(
    settings: Settings, make_photo: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import runtime.image.write.encode as encode

    photo = plan_photos([str(make_photo("in/a.png"))], Target(settings.out), settings.options)[0]
    worker = Worker(settings)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(encode, "encode", full)
        result = worker.enlarge(photo)
    assert (result.outcome.status, result.node_fault, result.outcome.outputs) == ("failed", True, [])
    assert "No space left" in (result.outcome.error or "")
    assert files_in(Path(settings.out)) == []
    assert worker.enlarge(photo).outcome.status == "ok"
    assert not is_node_fault(ValueError())


def test_copies_of_a_killed_worker_are_removed_by_the_next_one(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    from gdposr.batch.temporary import held

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("dead", "alive"):
        (tmp_path / f"{SCRATCH}{name}").mkdir()
    with held(tmp_path / f"{SCRATCH}alive"):
        Worker(settings)
    assert [path.name for path in tmp_path.glob(f"{SCRATCH}*")] == [f"{SCRATCH}alive"]


def test_another_bundle_on_a_node_is_refused(settings: Settings) -> None:
    import dataclasses

    other = dataclasses.replace(settings, options=dataclasses.replace(settings.options, digest="0" * 16))
    with pytest.raises(UsageError, match="on each node, got"):
        Worker(other)


# --- stopping and going on ------------------------------------------------------------------------------------------------


def test_a_second_run_does_what_is_left_and_keeps_what_the_report_knew(
    gdposr: Any, here: None, archive: Path, tmp_path: Path
) -> None:
    words = ("upscale", archive.as_uri(), "-o", (tmp_path / "out").as_uri(), "--ray")
    assert gdposr(*words)[0] == 1
    first, pictures = rows_of(tmp_path / "out"), contents(tmp_path / "out")
    (tmp_path / "out/a_x4_seed0.png").unlink()
    code, _, err = gdposr(*words, "--skip-existing")
    assert code == 1
    assert "6 photos: 1 done; 4 skipped, their outputs exist; 1 failed" in err
    assert contents(tmp_path / "out") == pictures
    second = rows_of(tmp_path / "out")
    assert second["c.png"] == first["c.png"] | {"status": "skipped"}
    assert second["a.png"]["status"] == "ok"


def test_rows_of_a_killed_driver_are_taken_over(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    import gdposr.fleet.report as module

    monkeypatch.setattr(module, "PART_SECONDS", 0.0)
    target, digest = Target(settings.out), settings.options.digest
    killed = Report(target, 0, digest, False)
    killed.precision = "int8"
    done = Outcome("a.png", "ok", [{"path": "a_x4_seed0.png", "sample": 0}], ["a note"])
    killed.add(Result(0, done, 12.5, ["00"], "node"))
    assert [name.startswith(PARTS) for name in files_in(Path(settings.out))] == [True]
    following = Report(target, 0, digest, True)
    following.add(Result(0, Outcome("a.png", "skipped", done.outputs), 0.0))
    following.close()
    assert files_in(Path(settings.out)) == [REPORT]
    row = rows_of(Path(settings.out))["a.png"]
    assert (row["status"], row["milliseconds"], row["notes"]) == ("skipped", 12.5, ["a note"])
    assert (row["sha256"], row["digest"], row["precision"], row["node"]) == (["00"], digest, "int8", "node")


def test_ctrl_c_leaves_a_report_of_all_photos(
    gdposr: Any, here: None, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = cluster.enlarged

    def stopped(*arguments: Any) -> Iterator[Result]:
        for count, result in enumerate(whole(*arguments)):
            if count == 2:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(cluster, "enlarged", stopped)
    code, _, err = gdposr("upscale", archive, "-o", tmp_path / "out", "--ray")
    assert code == 130
    assert "interrupted; finished files stay" in err
    statuses = sorted(row["status"] for row in rows_of(tmp_path / "out").values())
    assert statuses == ["ok", "ok", "unfinished", "unfinished", "unfinished", "unfinished"]
