"""Archives on Ray, all but Ray itself: plan, stores, the worker's bytes, rounds, report, resume. Clusters are in test_fleet_ray.py."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import files_in, is_one_line

pa = pytest.importorskip("pyarrow", reason="needs the extra ray: pip install 'gdposr[ray]'")
pytest.importorskip("ray", reason="needs the extra ray: pip install 'gdposr[ray]'")

import pyarrow.parquet as pq  # noqa: E402

from gdposr.batch.outputs import plan_tasks  # noqa: E402
from gdposr.batch.task import Options, Outcome  # noqa: E402
from gdposr.console import UsageError  # noqa: E402
from gdposr.fleet import cluster  # noqa: E402
from gdposr.fleet.photos import ArchivePhoto, Target, plan_photos  # noqa: E402
from gdposr.fleet.report import PARTS, REPORT, Report  # noqa: E402
from gdposr.fleet.store import Store, is_address  # noqa: E402
from gdposr.fleet.worker import SCRATCH, Result, Settings, Worker, is_node_fault  # noqa: E402


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
def options(toy_bundle: Path) -> Options:
    from runtime.bundle.reader import Bundle

    return Options(0, 1, "all", 4.0, 95, Bundle.open(toy_bundle).digest)


@pytest.fixture
def settings(options: Options, toy_bundle: Path, tmp_path: Path) -> Settings:
    out = str(tmp_path / "out")
    return Settings(options, out, out, str(toy_bundle), "cpu", "auto", 1, None, None, None)


@pytest.fixture
def archive(make_photo: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder of five photos, one broken file, and what is left out."""
    for index, name in enumerate(("a.png", "b.jpg", "b.png", "day 1/c.png", "day 1/ä.png")):
        make_photo(f"in/{name}", seed=index)
    make_photo("in/.hidden/d.png")
    (tmp_path / "in/broken.jpg").write_bytes(b"no picture")
    (tmp_path / "in/notes.txt").write_text("no photo")
    return tmp_path / "in"


# --- plan ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_store", [False, True], ids=["folder", "store"])
def test_photos_are_named_as_by_the_plain_command(
    archive: Path, tmp_path: Path, options: Options, as_store: bool
) -> None:
    out = tmp_path / "out"
    target = Target(out.as_uri() if as_store else str(out))
    photos = plan_photos([archive.as_uri() if as_store else str(archive)], target, options)
    planned = {photo.path: [str(out / name) for name in photo.outputs(options)] for photo in photos}
    plain = {str(task.source): [str(task.target())] for task in plan_tasks([str(archive)], out, options)}
    assert planned == plain
    assert len(planned) == 6
    assert [photo.number for photo in photos] == list(range(6))
    assert all(ArchivePhoto.unpacked(photo.packed()) == photo for photo in photos)


def test_results_inside_the_input_are_no_photos(archive: Path, options: Options, make_photo: Any) -> None:
    make_photo("in/large/a.png")
    for source, out in (
        (str(archive), str(archive / "large")),
        (archive.as_uri(), f"{archive.as_uri()}/large"),
    ):
        photos = plan_photos([source], Target(out), options)
        assert not [photo for photo in photos if "large" in photo.path]


def test_what_would_be_lost_is_refused(
    archive: Path, tmp_path: Path, options: Options, make_photo: Any
) -> None:
    make_photo("other/a.png")
    with pytest.raises(UsageError, match="would both be written"):
        plan_photos([str(archive), str(tmp_path / "other")], Target(str(tmp_path / "out")), options)
    with pytest.raises(UsageError, match="input and the output too"):
        plan_photos([archive.as_uri()], Target(archive.as_uri()), options)
    make_photo("in/a_x4_seed0.png")
    with pytest.raises(UsageError, match="is an input"):
        plan_photos([str(archive), str(archive / "a.png")], Target(str(archive.parent / "in/../in")), options)


def test_addresses_that_hold_nothing_are_told(tmp_path: Path, options: Options) -> None:
    target = Target(str(tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="expected a folder with photos, got none"):
        plan_photos([(tmp_path / "empty").as_uri()], target, options)
    with pytest.raises(UsageError, match="expected an address such as"):
        plan_photos(["nowhere://bucket/photos"], target, options)


# --- stores ----------------------------------------------------------------------------------------------------------------


def test_addresses_show_no_passwords_and_options() -> None:
    store = Store("s3://key:secret@bucket/photos?region=eu-west-1")
    assert store.shown(store.below("a.jpg")) == "s3://bucket/photos/a.jpg"
    assert is_address("s3://bucket")
    assert not is_address(Path("photos/2019"))


def test_a_file_that_is_cut_short_never_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    source = tmp_path / "source"
    source.write_bytes(b"x" * 3_000_000)
    store = Store((tmp_path / "store").as_uri())

    def cut(file: Any, stream: Any, size: int) -> None:
        stream.write(file.read(size))
        raise OSError(errno.EIO, "broken disk")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", cut)
        with pytest.raises(OSError, match="broken disk"):
            store.put(source, store.below("sub/a.png"))
    assert files_in(tmp_path / "store") == []
    store.put(source, store.below("sub/a.png"))
    assert files_in(tmp_path / "store") == ["sub/a.png"]
    assert store.names() == {"sub/a.png"}


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


# --- rounds ----------------------------------------------------------------------------------------------------------------


class Nodes:
    """Nodes instead of Ray's. bad: nodes that fail at everything. deadly: photos whose worker dies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bad: set[str], deadly: set[int]) -> None:
        self.names, self.bad, self.deadly = ["x", "y"], bad, deadly
        self.rounds: list[tuple[list[int], set[str], bool]] = []
        monkeypatch.setattr(cluster, "_round", self.round)
        monkeypatch.setattr(
            cluster, "_places", lambda takes, avoid=None: len(set(self.names) - set(avoid or ()))
        )

    def round(
        self, photos: list[ArchivePhoto], settings: Any, takes: Any, avoid: set[str], alone: bool
    ) -> Iterator[Result]:
        self.rounds.append(([photo.number for photo in photos], set(avoid), alone))
        nodes = [name for name in self.names if name not in avoid]
        for photo in photos:
            node = nodes[photo.number % len(nodes)]
            if photo.number in self.deadly:
                continue
            fault = node in self.bad
            status = "failed" if fault else "ok"
            yield Result(photo.number, Outcome(photo.source, status), 1.0, node=node, node_fault=fault)


def run_rounds() -> dict[int, Result]:
    photos = [
        ArchivePhoto(number, f"{number}.png", f"/{number}.png", None, "", f"{number}") for number in range(4)
    ]
    results = list(cluster.enlarged(photos, None, {}))  # type: ignore[arg-type]
    assert len(results) == len({result.number for result in results}) == 4
    return {result.number: result for result in results}


def test_what_a_node_cannot_do_goes_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch, {"y"}, set())
    results = run_rounds()
    assert {result.outcome.status for result in results.values()} == {"ok"}
    assert nodes.rounds == [([0, 1, 2, 3], set(), False), ([1, 3], {"y"}, True)]


def test_nodes_that_all_fail_end_the_run_with_their_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch, {"x", "y"}, set())
    results = run_rounds()
    assert {result.outcome.status for result in results.values()} == {"failed"}
    assert len(nodes.rounds) == 1


def test_a_photo_that_kills_its_worker_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch, set(), {2})
    results = run_rounds()
    assert [results[number].outcome.status for number in range(4)] == ["ok", "ok", "failed", "ok"]
    assert "died at it 9 times" in (results[2].outcome.error or "")
    assert [numbers for numbers, _, _ in nodes.rounds] == [[0, 1, 2, 3], [2], [2]]


@pytest.mark.parametrize(
    ("count", "size", "places", "blocks"),
    [
        (500, 3_000, 2, 32),
        (500, 3_000, 64, 500),
        (10, 5_000_000, 2, 10),
        (1_000_000, 5_000_000, 64, 50_000),
        (1, None, 1, 1),
    ],
)
def test_blocks_hold_seconds_of_work(count: int, size: int | None, places: int, blocks: int) -> None:
    photo = ArchivePhoto(0, "a", "a", None, "", "a", size=size)
    assert cluster._blocks([photo] * count, places) == blocks


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


# --- options ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("a.png", "-o", "b.png", "--ray"), "expected a folder as OUT, got b.png"),
        (("-", "-o", "out", "--ray"), "got - for a pipe"),
        (("a.png", "-o", "-", "--ray"), "got - for a pipe"),
        (("a.png", "-o", "out", "--json", "--ray"), "--json is for one machine"),
        (("a.png", "-o", "out", "--open", "--ray"), "--open is for one machine"),
        (("s3://bucket/a.png", "-o", "out"), "add --ray"),
        (("a.png", "-o", "s3://bucket/out"), "add --ray"),
    ],
)
def test_options_that_do_not_go_together(
    gdposr: Any,
    make_photo: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    told: str,
) -> None:
    make_photo("a.png")
    monkeypatch.chdir(tmp_path)
    code, _, err = gdposr("upscale", *words)
    assert code == 2
    assert told in err
    assert is_one_line(err)


def test_an_input_is_not_taken_for_the_cluster(gdposr: Any) -> None:
    code, _, err = gdposr("upscale", "--ray", "s3://bucket/photos", "-o", "out")
    assert code == 2
    assert "expected HOST:PORT, auto or local, got 's3://bucket/photos'" in err


def test_a_missing_package_is_named(
    gdposr: Any, make_photo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gdposr.forward.find_spec", lambda name: None)
    code, _, err = gdposr("upscale", make_photo("a.png"), "-o", tmp_path / "out", "--ray")
    assert code == 2
    assert 'pip install "gdposr[ray]"' in err
