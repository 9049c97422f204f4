"""`gdposr upscale` reads ahead and writes behind: the same bytes, each failure its own photo's, little in memory, an interrupt."""

import json
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import contents, files_in
from PIL import Image

from gdposr.batch.progress import Meter
from gdposr.batch.run import Batch
from gdposr.batch.task import Options, Outcome, Task
from runtime.image.bands import Strips


@pytest.mark.parametrize("words", [["--samples", 3], ["--samples", 2, "--select", "best"]])
def test_overlap_changes_no_byte(gdposr: Any, make_photo: Any, tmp_path: Path, words: list[object]) -> None:
    for index, channels in enumerate((1, 2, 3, 4, 3)):
        make_photo(f"in/{index}.png", 30 + 40 * index, 50, channels, seed=index)
    assert gdposr("upscale", tmp_path / "in", "-o", tmp_path / "with", *words)[0] == 0
    assert (
        gdposr("upscale", tmp_path / "in", "-o", tmp_path / "without", *words, "--max-memory", "4G")[0] == 0
    )
    assert contents(tmp_path / "with") == contents(tmp_path / "without")
    assert len(contents(tmp_path / "with")) in (5, 15)


@pytest.mark.parametrize("words", [[], ["--max-memory", "4G"], ["--select", "best"]])
def test_failed_write_is_the_failure_of_its_own_photo(
    gdposr: Any, make_photo: Any, tmp_path: Path, words: list[str]
) -> None:
    for name in "abcd":
        make_photo(f"in/{name}.png", 60, 60)
    (tmp_path / "out/b_x4_seed0.png").mkdir(parents=True)  # nothing can be written under this name
    (tmp_path / "in/c.png").write_bytes(b"no picture")
    code, out, err = gdposr("upscale", tmp_path / "in", "-o", tmp_path / "out", "--json", *words)
    assert code == 1
    files = json.loads(out)["files"]
    assert [entry["status"] for entry in files] == ["ok", "failed", "failed", "ok"]
    assert "b_x4_seed0.png: cannot be written" in files[1]["error"]
    assert "c.png" in files[2]["error"]
    assert err.count("failed: ") == 2
    assert files_in(tmp_path / "out") == ["a_x4_seed0.png", "d_x4_seed0.png"]


class FakeUpscaler:
    """Stands for a model: each picture tells how many samples are alive when the next is made."""

    precision, temperature = "fp32", 1.0

    def __init__(self) -> None:
        self.alive: list[int] = []

    def picture(self, image: np.ndarray, **_: object) -> "FakePicture":
        return FakePicture(image, self.alive)


class FakePicture:
    def __init__(self, image: np.ndarray, alive: list[int]) -> None:
        self._image, self._alive, self._made = image, alive, []  # type: tuple[np.ndarray, list[int], list[Any]]

    def sample(self, number: int) -> np.ndarray:
        self._alive.append(sum(made() is not None for made in self._made))
        noise = np.random.default_rng(number).integers(0, 99, (96, 96, 3), dtype=np.uint8)
        self._made.append(weakref.ref(noise))
        return noise

    def strips(self, number: int) -> Strips:
        noise = self.sample(number)
        return Strips(noise.shape, noise.dtype, iter(np.split(noise, 4)))


def outcome_of(photo: Path, out: Path, options: Options, upscaler: Any) -> Outcome:
    task = Task(photo, out, "a")
    Batch(options, upscaler, Meter([None], lambda *_: None), lambda _: None).run([task])
    return task.outcome


@pytest.mark.parametrize(
    ("pixels", "overlap", "early"), [(500, True, 1), (None, True, 0), (25_000_001, True, 0), (500, False, 0)]
)
def test_next_photo_is_read_early_only_where_it_is_small(
    make_photo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels: int, overlap: bool, early: int
) -> None:
    import runtime.image.read.decode as image

    reads: list[Path] = []
    at_turn: list[int] = []
    real = image.read_photo

    def read(path: Path, **options: Any) -> Any:
        reads.append(path)
        return real(path, **options)

    class Slow(FakeUpscaler):
        def picture(self, image: np.ndarray, **options: object) -> FakePicture:
            time.sleep(0.1)  # time enough to read the next
            at_turn.append(len(reads))
            return super().picture(image, **options)

    monkeypatch.setattr(image, "read_photo", read)
    photos = [make_photo(f"{index}.png", 8, 8) for index in range(3)]
    tasks = [Task(photo, tmp_path / "out", photo.stem, pixels=pixels) for photo in photos]
    meter, slow = Meter([pixels] * 3, lambda *_: None), Slow()
    Batch(Options(0, 1, "all", 4.0, 95, "digest"), slow, meter, lambda _: None, overlap).run(tasks)  # type: ignore[arg-type]
    assert at_turn == [1 + early, 2 + early, 3]
    assert [task.outcome.status for task in tasks] == ["ok"] * 3


def test_best_holds_one_sample_beside_the_one_being_made(make_photo: Any, tmp_path: Path) -> None:
    upscaler, options = FakeUpscaler(), Options(0, 6, "best", 4.0, 95, "digest")
    outcome = outcome_of(make_photo("a.png"), tmp_path / "out", options, upscaler)
    assert outcome.status == "ok", outcome.error
    assert upscaler.alive == [0, 1, 1, 1, 1, 1]


def test_picture_that_ran_out_of_memory_half_way_is_begun_again(make_photo: Any, tmp_path: Path) -> None:
    from runtime.errors import OutOfMemory

    class Tight(FakePicture):
        failures = 0

        def strips(self, number: int) -> Strips:
            whole = super().strips(number)

            def bands() -> Any:
                for index, band in enumerate(whole.bands):
                    if index == 2 and Tight.failures < 2:
                        Tight.failures += 1
                        raise OutOfMemory("take the sample again")
                    yield band

            return Strips(whole.shape, whole.dtype, bands())

    class TightUpscaler(FakeUpscaler):
        def picture(self, image: np.ndarray, **_: object) -> FakePicture:
            return Tight(image, self.alive)

    options = Options(0, 1, "all", 4.0, 95, "digest")
    outcome = outcome_of(make_photo("a.png"), tmp_path / "out", options, TightUpscaler())
    assert (outcome.status, Tight.failures, len(outcome.outputs)) == ("ok", 2, 1)
    assert files_in(tmp_path / "out") == ["a.png"]
    wanted = FakeUpscaler().picture(np.zeros(1)).sample(0)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/a.png")), wanted)


def test_interrupted_picture_leaves_no_file_and_the_one_before_it_is_whole(
    make_photo: Any, tmp_path: Path
) -> None:
    class Interrupted(FakeUpscaler):
        def picture(self, image: np.ndarray, **options: object) -> FakePicture:
            picture = super().picture(image, **options)
            if image.shape[0] == 7:
                whole = picture.strips(0)

                def bands() -> Any:
                    yield next(whole.bands)
                    raise KeyboardInterrupt

                picture.strips = lambda _: Strips(whole.shape, whole.dtype, bands())  # type: ignore[method-assign]
            return picture

    photos = [make_photo(f"{name}.png", height) for name, height in (("a", 9), ("b", 7), ("c", 9))]
    tasks = [Task(photo, tmp_path / "out", photo.stem) for photo in photos]
    told: list[str] = []
    options = Options(0, 1, "all", 4.0, 95, "digest")
    batch = Batch(
        options,
        Interrupted(),  # type: ignore[arg-type]
        Meter([None] * 3, lambda *_: None),
        lambda outcome: told.append(outcome.status),
    )
    with pytest.raises(KeyboardInterrupt):
        batch.run(tasks)
    assert told == ["ok", "unfinished"]
    assert files_in(tmp_path / "out") == ["a.png"]
