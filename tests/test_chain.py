"""What `make chain` says of its stages: their gains with intervals, and that a stage which adds nothing is said to."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")

from torch import Tensor  # noqa: E402  (after importorskip)

from calibration.measure.intervals import Difference  # noqa: E402
from export.student.model.checkpoint import save_student  # noqa: E402
from export.student.model.network import TINY_STUDENT, Student  # noqa: E402
from tools.chain import export, table  # noqa: E402
from tools.chain.export import Exported  # noqa: E402
from tools.chain.scores import Held, columns, held_pictures, on_pixels, wins  # noqa: E402
from tools.chain.stages import GIVEN, STAGES, find_stages  # noqa: E402
from tools.chain.table import Row, changes, markdown, verdict  # noqa: E402


def enlarged(lr: Tensor, sample: int = 0) -> Tensor:
    return torch.nn.functional.interpolate(lr[None], scale_factor=4, mode="bicubic")[0]


@pytest.fixture(scope="module")
def held(photos: Path) -> Held:
    found = held_pictures(photos, held_out=2, draws=2, size=96, cards=3)
    return replace(found, prior=tuple(enlarged(lr) for lr in found.lr))


def test_pictures_are_of_the_photos_that_stages_leave_out(photos: Path, held: Held) -> None:
    from training.data.photos import find_images, split_photos

    _, left = split_photos(find_images(photos), 2)
    assert set(held.names) == {path.name for path in left}
    assert [len(held.lr), len(held.hr), len(held.cards)] == [4, 4, 3]
    for lr, hr in (*zip(held.lr, held.hr, strict=True), *held.cards):
        assert 4 * lr.shape[1] == hr.shape[1]
        assert torch.equal((lr * 255).round() / 255, lr)
    again = held_pictures(photos, held_out=2, draws=2, size=96, cards=3)
    assert all(torch.equal(a, b) for a, b in zip(held.lr, again.lr, strict=True))
    assert not torch.equal(held.lr[0], held.lr[2])  # another crop of the same photo


def test_columns_tell_better_pictures_and_differing_seeds(held: Held) -> None:
    truth = {lr.data_ptr(): hr for lr, hr in zip(held.lr, held.hr, strict=True)} | {
        lr.data_ptr(): hr for lr, hr in held.cards
    }

    def near(lr: Tensor, sample: int) -> Tensor:
        """Half way from bicubic to the truth, and a grain that differs from seed to seed."""
        grain = torch.randn(truth[lr.data_ptr()].shape, generator=torch.Generator().manual_seed(sample))
        return (enlarged(lr) + truth[lr.data_ptr()]) / 2 + 0.01 * grain

    plain, better = columns(enlarged, held), columns(near, held)
    assert "sqf" not in plain  # without weights
    assert all(np.isposinf(plain["prior"]))
    assert max(plain["seeds"]) == 0
    assert min(better["seeds"]) > 1
    for key in ("photo", "cards"):
        assert min(a - b for a, b in zip(better[key], plain[key], strict=True)) > 1, key
    assert max(a - b for a, b in zip(better["energy"], plain["energy"], strict=True)) < 0
    assert wins(near, near, held) == [0.5] * 4
    assert np.mean(wins(near, enlarged, held)) > 0.8


def test_a_model_on_pixels_gets_and_gives_them(held: Held) -> None:
    asked = []

    def samples(lr: np.ndarray, count: int) -> list[np.ndarray]:
        asked.append((lr.dtype, lr.shape, count))
        return [np.full((4 * lr.shape[0], 4 * lr.shape[1], 3), k, np.uint8) for k in range(count)]

    picture = on_pixels(samples)(held.lr[0], 1)
    assert asked == [(np.uint8, (24, 24, 3), 2)]
    assert torch.equal(picture, torch.full((3, 96, 96), 1 / 255))


def difference(low: float, high: float) -> Difference:
    return Difference((low + high) / 2, low, high)


def test_a_stage_that_adds_nothing_is_said_to() -> None:
    nothing = Row("letters", ("cards",), {}, {"cards": difference(-0.1, 0.3), "photo": difference(-0.2, 0.1)})
    assert verdict(nothing) == ("**letters** adds nothing: PSNR of drawn cards, dB +0.10 (-0.10 to +0.30).")
    worse = replace(nothing, change={"cards": difference(-0.3, -0.1), "sqf": difference(0.01, 0.03)})
    assert verdict(worse) == (
        "**letters** adds nothing: PSNR of drawn cards, dB -0.20 (-0.30 to -0.10). It costs SQF +0.0200 (+0.0100 to +0.0300)."
    )


def test_gains_and_costs_are_told_with_their_intervals() -> None:
    noise = Row(
        "noise",
        ("energy", "seeds"),
        {},
        {"energy": difference(-0.4, -0.2), "seeds": difference(1, 3), "photo": difference(-0.3, -0.1)},
    )
    assert verdict(noise) == (
        "**noise** adds energy score, 1/255 -0.300 (-0.400 to -0.200), seeds differ, 1/255 +2.00 (+1.00 to +3.00). "
        "It costs PSNR to the photo, dB -0.20 (-0.30 to -0.10)."
    )
    half = replace(noise, change=dict(noise.change) | {"energy": difference(-0.4, 0.2)})
    assert "; nothing in energy score, 1/255 -0.100 (-0.400 to +0.200)" in verdict(half)
    gdpo = Row("gdpo", ("wins",), {}, {"wins": difference(0.1, 0.3)})
    assert verdict(gdpo) == "**gdpo** adds wins over the noise stage 0.700 (0.600 to 0.800)."
    faithful = Row("gdpo", ("photo",), {}, {"photo": difference(0.01, 0.03), "wins": difference(-0.3, -0.1)})
    assert verdict(faithful).endswith("It costs wins over the noise stage 0.300 (0.200 to 0.400).")
    tiny = replace(noise, aims=("energy",), change={"energy": difference(-0.0004, -0.0002)})
    assert verdict(tiny).startswith("**noise** adds nothing: energy score, 1/255 -0.000")
    unmeasured = Row("core", ("sqf",), {}, {"photo": difference(-1, 1)})
    assert verdict(unmeasured) == "**core** not measured: SQF."
    given = Row(GIVEN, ("prior",), {}, {"photo": difference(0.5, 0.7)})
    assert verdict(given) == f"**{GIVEN}** was not trained here."


def test_changes_are_paired_by_picture_and_drawn_by_photo() -> None:
    before = {"photo": [20.0, 30.0, 25.0, 22.0], "cards": [10.0, 11.0, 12.0]}
    after = {"photo": [20.5, 30.5, 25.5, 22.5], "cards": [9.0, 10.0, 11.0], "wins": [1.0, 1.0, 0.5, 0.5]}
    found = changes(after, before, ["a", "b", "a", "b"])
    assert (found["photo"].mean, found["photo"].low, found["photo"].high) == pytest.approx((0.5, 0.5, 0.5))
    assert found["cards"].mean == pytest.approx(-1)
    assert found["wins"].mean == pytest.approx(0.25)


def test_files_of_the_bundle_are_told_by_their_loss_and_time() -> None:
    quick = Exported("int8", 26.0, 1.5, 400_000, difference(-0.03, -0.01), 50.0, difference(-42, -38))
    assert quick.verdict() == (
        "**int8** costs -0.020 (-0.030 to -0.010) dB; it is faster: -40.0 (-42.0 to -38.0) ms against fp32."
    )
    slow = replace(quick, loss=difference(-0.01, 0.01), slower=difference(-1, 3))
    assert "costs no dB that these pictures show: +0.000 (-0.010 to +0.010)" in slow.verdict()
    assert "adds nothing in speed: +1.0 (-1.0 to +3.0) ms" in slow.verdict()
    package = replace(quick, name="coreml fp16", milliseconds=None, slower=None)
    assert package.verdict().endswith("dB; 400,000 bytes; not timed here.")
    assert package.cells()[-1] == "-"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, toy_bundle: Path) -> Path:
    """A finished chain of tiny students with random weights; the toy bundle stands for its bundle."""
    folder = tmp_path_factory.mktemp("chain")
    for number, stage in enumerate(STAGES):
        torch.manual_seed(number)
        save_student(Student(TINY_STUDENT), folder / stage.model, {"stage": stage.name})
    shutil.copytree(toy_bundle, folder / "pocket.gdposr")
    return folder


def test_report_has_every_stage_and_every_file(
    chain: Path,
    photos: Path,
    ncnn_network: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        table, "held_pictures", lambda data, **_: held_pictures(data, held_out=2, draws=1, size=64, cards=2)
    )
    monkeypatch.setattr(export, "SIDE", 32)
    monkeypatch.setattr(export, "ROUNDS", 3)
    out = chain / "table.md"
    common = ["--chain", str(chain), "--data", str(photos), "--perceptual-weights", str(weights)]
    assert table.main([*common, "--prior", str(ncnn_network), "--out", str(out)]) == 0
    text = out.read_text()
    assert capsys.readouterr().out == text
    for name in ("bicubic", "core", "noise", "gdpo", "fp32", "int8"):
        assert f"| {name} |" in text, name
    for stage in STAGES:
        assert f"- **{stage.name}** " in text
    assert "Of fewer than 10 photos the intervals are too narrow" in text

    core = ["--core", str(chain / "core/model"), "--ships", str(chain / "student")]
    assert table.main([*common, *core]) == 0
    text = capsys.readouterr().out
    assert "and trained none (CORE= trains one from nothing)" in text
    assert f"The student is {chain / 'student'}, weight for weight." in text
    assert f"| {GIVEN} |" in text
    assert "| core |" not in text
    assert "No prior was given (PRIOR=)" in text
    assert "PSNR to the prior's picture" not in text.splitlines()[4]


def test_a_student_that_is_not_the_one_that_ships_is_told_by_its_pictures(chain: Path, held: Held) -> None:
    text = table.beside(chain / "student", chain / "noise/model", held)
    found = re.search(r"their pictures differ by ([0-9.]+) levels", text)
    assert found
    assert float(found[1]) > 0.1
    assert "is not" in text


def test_what_is_missing_is_named(
    chain: Path, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected the model of the stage core.*make chain"):
        find_stages(tmp_path, None)
    assert [stage.name for stage, _ in find_stages(chain, chain)] == [GIVEN, "noise", "gdpo"]
    assert table.main(["--chain", str(chain), "--data", str(photos)]) == 2
    assert "give --prior, the chain's prior, or --core" in capsys.readouterr().err
    assert markdown([Row("bicubic", (), {"photo": [20.0]}, {})], [], []).count("|") == 9
