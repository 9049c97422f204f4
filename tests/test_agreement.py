"""Which score agrees with the votes: the arithmetic by hand, and pictures and votes where the answer is known by construction."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra `train`")

from calibration.blind.pairs import Pair  # noqa: E402  (after importorskip)
from calibration.blind.scenes import find_scenes  # noqa: E402
from calibration.blind.study import write_study  # noqa: E402
from calibration.studies.agreement import by_chance, count, main  # noqa: E402
from calibration.studies.judged import Folders, outputs, read_judged  # noqa: E402
from runtime.errors import ImageError  # noqa: E402

SCALE, SIDE, CROP = 4, 24, 16
DARKER = 12  # levels
COUNT = 8  # photos
SPOILT = 2  # the first of them: there A is the grainy one


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(path)


def truth(index: int) -> np.ndarray:
    """Left half flat, right half bars, (H, W, 3)."""
    bars = np.where(np.arange(SIDE * SCALE) // 4 % 2, 60.0, 180.0)
    bars[: SIDE * SCALE // 2] = 100.0 + index
    return np.broadcast_to(bars[None, :, None], (SIDE * SCALE, SIDE * SCALE, 3)).copy()


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """lr, hr, clean and grainy pictures of `COUNT` photos of kind "clean", and two of kind "old" without truth. The clean ones
    are worse by PSNR, being a little too dark; in the first `SPOILT` photos of kind "clean" A is the grainy one."""
    rng = np.random.default_rng(0)
    names = [f"clean/photo{index}" for index in range(COUNT)] + ["old/x0", "old/x1"]
    for index, name in enumerate(names):
        hr = truth(index)
        clean, grainy = hr - DARKER, hr + rng.normal(0, 3, hr.shape[:2])[..., None]
        a, b = (grainy, clean) if index < SPOILT else (clean, grainy)
        save(tmp_path / "lr" / f"{name}.png", hr[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE])
        save(tmp_path / "a" / f"{name}_x4_seed0.png", a)
        save(tmp_path / "b" / f"{name}.png", b)
        if name.startswith("clean"):
            save(tmp_path / "hr" / f"{Path(name).name}.png", hr)
    return tmp_path


def study(world: Path, prefers_a: Callable[[str, str], bool | None], name: str = "study") -> list[str]:
    """Arguments for a study of every photo with votes of one voter. prefers_a: (kind, photo) -> None for a tie."""
    scenes = find_scenes(world / "a", world / "b", world / "lr")
    random = np.random.default_rng(1)
    # across the border of flat and bars, in random order and on random sides
    pairs = [Pair(scene, int(random.integers(SIDE - CROP)), 4, bool(random.integers(2))) for scene in scenes]
    pairs = [pairs[index] for index in random.permutation(len(pairs))]
    write_study(world / name, pairs, crop=CROP, names=("ours", "peer"), seed=1, command="", version="0")
    lines = ["# a remark", "pair,vote"]
    for number, pair in enumerate(pairs, 1):
        wanted = prefers_a(pair.scene.kind, pair.scene.photo)
        vote = "tie" if wanted is None else "left" if wanted is pair.a_left else "right"
        lines.append(f"{number},{vote}")
    (world / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return ["--study", str(world / f"{name}.key.json"), "--votes", str(world / f"{name}.csv")]


def a_is_clean(kind: str, photo: str) -> bool:
    return not (kind == "clean" and int(photo.removeprefix("photo")) < SPOILT)


def scored(world: Path, arguments: Sequence[str]) -> dict[str, dict]:
    out = world / "result.json"
    assert main([*arguments, "--json", str(out)]) == 0
    return {row["score"]: row for row in json.loads(out.read_text())["scores"]}


def test_counting_by_hand() -> None:
    # 10 pairs, the usual winner won 7; the score names the loser 4 times, 2 of them rightly
    won_says = [(True, True)] * 5 + [(True, False)] * 2 + [(False, False)] * 2 + [(False, True)]
    found = count("score", "truth", won_says)
    assert (found.pairs, found.agrees, found.base, found.minority) == (10, 7, 7, 3)
    assert (found.minority_agrees, found.names_loser) == (2, 4)
    assert found.share == found.base_rate == 0.7
    assert found.low == pytest.approx(0.3968, abs=1e-4)
    assert found.high == pytest.approx(0.8922, abs=1e-4)
    # C(3,2) C(7,2) + C(3,3) C(7,1) of C(10,4) draws
    assert found.chance == pytest.approx((3 * 21 + 7) / 210)
    assert not found.above_chance


def test_a_score_that_always_names_one_side_has_only_the_base_rate() -> None:
    usual = count("usual", "nothing", [(True, True)] * 8 + [(False, True)] * 2)
    assert usual.agrees == usual.base == 8
    assert usual.chance is None
    loser = count("loser", "nothing", [(True, False)] * 8 + [(False, False)] * 2)
    assert (loser.agrees, loser.minority_agrees, loser.chance) == (2, 2, None)
    empty = count("none", "truth", [])
    assert (empty.share, empty.base_rate, empty.low, empty.high) == (None, None, 0.0, 1.0)


def test_probability_is_fishers() -> None:
    stats = pytest.importorskip("scipy.stats", reason="needs scipy")
    table = [[4, 3], [2, 38]]  # named the loser, rightly and wrongly; the others
    assert by_chance(4, 6, 7, 47) == pytest.approx(stats.fisher_exact(table, alternative="greater").pvalue)
    assert math.isclose(by_chance(0, 6, 7, 47), 1.0)


def test_voters_who_want_clean_flats_agree_with_grain_and_not_with_psnr(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = scored(world, [*study(world, a_is_clean), "--hr", str(world / "hr")])
    grain, amount, psnr = found["grain, distance"], found["grain, amount"], found["psnr"]
    # the truth of "old" is not there: eight pairs for what needs it, ten for the rest
    assert (grain["pairs"], grain["agrees"], grain["base"]) == (8, 8, 6)
    assert (grain["minority"], grain["minority_agrees"], grain["names_loser"]) == (2, 2, 2)
    assert grain["chance"] == pytest.approx(1 / math.comb(8, 2))
    assert grain["above_chance"]
    assert (amount["pairs"], amount["agrees"], amount["base"]) == (10, 10, 8)
    assert (psnr["pairs"], psnr["agrees"]) == (8, 0)
    assert found["niqe"]["pairs"] == 10
    printed = capsys.readouterr().out
    assert "ours 8, peer 2, no winner 0" in printed
    assert "left out where it is needed: old 2." in printed
    assert (
        "| grain, distance | truth | 8 | 8 | 100 % | 68 % to 100 % | 6 (75 %) | 2 of 2 | 2 of 8 |" in printed
    )


def test_ties_decide_nothing(world: Path) -> None:
    arguments = study(
        world, lambda kind, photo: None if photo in ("photo3", "x1") else a_is_clean(kind, photo)
    )
    found = scored(world, [*arguments, "--hr", str(world / "hr")])
    assert found["grain, distance"]["pairs"] == 7
    assert found["grain, amount"]["pairs"] == 8


def test_several_voters_count_as_their_majority(world: Path) -> None:
    arguments = study(world, a_is_clean)
    votes = world / "study.csv"
    against = votes.read_text().replace("left", "x").replace("right", "left").replace("x", "right")
    (world / "two.csv").write_text(against)
    found = scored(world, [*arguments, str(world / "two.csv"), "--hr", str(world / "hr")])
    assert found["grain, distance"]["pairs"] == 0
    (world / "three.csv").write_text(votes.read_text())
    found = scored(
        world, [*arguments, str(world / "two.csv"), str(world / "three.csv"), "--hr", str(world / "hr")]
    )
    assert found["grain, distance"]["agrees"] == 8


def test_folders_give_the_same_as_the_studys_crops(world: Path) -> None:
    arguments = [*study(world, a_is_clean), "--hr", str(world / "hr")]
    folders = [f"--{name}={world / name}" for name in ("a", "b", "lr")]
    assert scored(world, arguments) == scored(world, [*arguments, *folders])


def test_studies_are_pooled_each_with_its_own_usual_winner(world: Path) -> None:
    first = study(world, a_is_clean)
    second = study(world, lambda kind, photo: not a_is_clean(kind, photo), "other")
    found = scored(world, [*first, *second, "--hr", str(world / "hr")])
    grain = found["grain, distance"]
    assert (grain["pairs"], grain["agrees"], grain["base"]) == (
        16,
        8,
        12,
    )  # right in the first, wrong in the second


def test_without_truth_only_the_rest_is_judged(world: Path) -> None:
    found = scored(world, study(world, a_is_clean))
    assert found["psnr"]["pairs"] == found["gradients"]["pairs"] == 0
    assert found["psnr"]["share"] is None
    assert found["grain, amount"]["pairs"] == 10


def test_a_critic_is_judged_where_one_is_given(world: Path) -> None:
    from training.metrics import critic as critics

    critics.save_critic(critics.Critic(critics.CriticConfig(width=4)), world / "critic")
    arguments = [*study(world, a_is_clean), "--critic", str(world / "critic")]
    assert scored(world, arguments)["critic"]["pairs"] == 10


def test_crops_are_the_truths_place(world: Path) -> None:
    study(world, a_is_clean)
    votes, pairs = read_judged(world / "study.key.json", [world / "study.csv"], Folders(hr=world / "hr"))
    assert votes.without_truth == {"old": 2}
    for pair in pairs:
        if pair.truth is not None:
            clean = pair.a if pair.a_won else pair.b
            assert np.array_equal(clean.astype(int), pair.truth.astype(int) - DARKER)


def test_outputs_are_named_like_inputs_and_must_be_unique(tmp_path: Path) -> None:
    save(tmp_path / "p_x4_seed3.png", np.zeros((4, 4, 3)))
    assert outputs(tmp_path)["p"].name == "p_x4_seed3.png"
    save(tmp_path / "p_x4_seed4.png", np.zeros((4, 4, 3)))
    with pytest.raises(ImageError, match="keep one"):
        outputs(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--votes", "twice.csv"], "in the order of --study"),
        (["--a", "A"], "give both or none"),
        (["--hr", "nowhere"], "expected a folder of photos"),
        (["--critic", "nowhere"], "nowhere"),
    ],
)
def test_what_does_not_fit_is_told(
    world: Path, change: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*study(world, a_is_clean), *change]) == 2
    assert message in capsys.readouterr().err


def test_an_hr_picture_of_another_size_is_refused(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(world / "hr" / "photo0.png", np.zeros((200, 200, 3)))
    folders = [f"--{name}={world / name}" for name in ("a", "b", "lr", "hr")]
    assert main([*study(world, a_is_clean), *folders]) == 2
    assert "expected an HR picture of 96x96" in capsys.readouterr().err


@pytest.mark.parametrize("lost", ["kind", "a", "names"])
def test_a_damaged_key_is_named(world: Path, lost: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = study(world, a_is_clean)
    key = world / "study.key.json"
    value = json.loads(key.read_text())
    del (value if lost in value else value["pairs"][0])[lost]
    key.write_text(json.dumps(value))
    assert main(arguments) == 2
    assert "study.key.json: expected the key of a study, with names" in capsys.readouterr().err


def test_votes_of_another_study_are_refused(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = study(world, a_is_clean)
    votes = world / "study.csv"
    votes.write_text(f"# study: {'0' * 64}\n" + votes.read_text())
    assert main(arguments) == 2
    assert "votes on another study" in capsys.readouterr().err
