"""Archives on Ray, all but Ray and its workers: plan, stores, rounds, options. Clusters are in test_fleet_ray.py."""

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import files_in, is_one_line

pa = pytest.importorskip("pyarrow", reason="needs the extra ray: pip install 'gdposr[ray]'")
pytest.importorskip("ray", reason="needs the extra ray: pip install 'gdposr[ray]'")

import fleet_cases  # noqa: E402  (after importorskip)

from gdposr.batch.outputs import plan_tasks  # noqa: E402
from gdposr.batch.task import Options, Outcome  # noqa: E402
from gdposr.console import UsageError  # noqa: E402
from gdposr.fleet import cluster  # noqa: E402
from gdposr.fleet.photos import ArchivePhoto, Target, plan_photos  # noqa: E402
from gdposr.fleet.store import Store, is_address  # noqa: E402
from gdposr.fleet.worker import Result  # noqa: E402

archive, options = fleet_cases.archive, fleet_cases.options  # fixtures

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
