"""What a student learns from its teacher: losses between their samples, texture alone, or the mean as well."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("diffusers", reason="needs the extra `train`")

from teachers import TINY, first_batch, run, stage_of, tiny_model  # noqa: E402  (after importorskip)
from torch import Tensor  # noqa: E402

from export.distill.losses import difference_loss, spread_loss, structure_loss  # noqa: E402
from export.distill.recipe import PRESETS  # noqa: E402
from export.distill.teacher import Teacher, by_sample, item_noise  # noqa: E402
from export.student.losses import low_pass  # noqa: E402
from training.pixels import from_bytes  # noqa: E402


def test_losses_against_the_teacher_are_zero_when_the_student_equals_it() -> None:
    draw = torch.Generator().manual_seed(0)
    teacher, hr = torch.rand(4, 3, 64, 64, generator=draw), torch.rand(2, 3, 64, 64, generator=draw)
    assert float(difference_loss(teacher, teacher)) == 0
    assert float(spread_loss(teacher, teacher)) == 0
    # A shift that both samples share is no matter of their difference; a lost difference is.
    assert float(difference_loss(teacher + 0.1, teacher)) == pytest.approx(0, abs=1e-6)
    same = teacher[:2].repeat(2, 1, 1, 1)
    assert float(difference_loss(same, teacher)) > 0.1
    assert float(spread_loss(same, teacher)) > 0.1
    # The right amount of the wrong pattern satisfies the spread, not the difference.
    swapped = teacher.roll(2, 0)
    assert float(spread_loss(swapped, teacher)) == 0
    assert float(difference_loss(swapped, teacher)) > 0.1
    blurred = low_pass(teacher - hr.repeat(2, 1, 1, 1)).abs().mean()
    assert float(structure_loss(teacher, hr, teacher)) == pytest.approx(float(blurred))


@pytest.mark.slow
def test_student_learns_to_follow_the_teacher(photos: Path, weights: Path, tmp_path: Path) -> None:
    model = tiny_model()
    last = [m for m in model.vae.decoder.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    # A teacher that is easy to follow: its latent is the noised one, its colours lie around gray.
    with torch.no_grad():
        for parameter in model.unet.conv_out.parameters():
            parameter.zero_()
        gray = model(torch.full((2, 3, 16, 16), 0.5), item_noise(9, 0, (4, 8, 8))).mean((0, 2, 3))
        last.bias.sub_(gray - 0.5)
    teacher = Teacher(model, "plain")
    config = replace(
        TINY,
        student=replace(TINY.student, width=16),
        **{"lr": 3e-3, "clip": 5.0, "ema": 0.9, "adversary": 0.0},
        **dict.fromkeys(
            ("pixel", "structure", "colour", "chroma", "grid", "feature", "teacher_feature"), 0.0
        ),
    )
    out = tmp_path / "run"
    cache = (tmp_path / "cache", 24)
    run(out, photos, weights, teacher, steps=1, config=config, cache=cache)
    run(out, photos, weights, teacher, steps=100, config=config, cache=cache, resume=True)
    before, *_, after = (json.loads(line) for line in (out / "log.jsonl").read_text().splitlines())
    assert after["teacher_psnr"] > before["teacher_psnr"] + 4  # measured: 14.8 to 22.7 dB
    assert after["follows"] > before["follows"] + 0.4  # 0.03 to 0.76
    assert after["diversity"] > before["diversity"] + 0.5  # 0.15 to 1.02


def test_teacher_without_weight_on_whole_samples_leads_in_texture_alone(
    teacher: Teacher, photos: Path, weights: Path
) -> None:
    """Then the photo alone says what the structure is and how much samples differ: equal losses for every teacher."""
    config = replace(TINY, teacher=0.0, teacher_feature=0.0)
    batch = first_batch(photos, weights, teacher, config)
    assert batch.target is not None
    other = replace(batch, target=batch.target.flip(0))
    losses = [stage_of(weights, teacher, config)("student", x, {})[0] for x in (batch, other)]
    assert not {"teacher", "teacher_feature"} & losses[0].keys()
    for name in ("pixel", "structure", "feature", "diversity", "grid"):
        assert losses[0][name] == losses[1][name], name
    assert losses[0]["teacher_difference"] != losses[1]["teacher_difference"]


def test_a_shift_of_all_samples_has_no_pull_unless_the_mean_may_pass(
    teacher: Teacher, photos: Path, weights: Path
) -> None:
    """The recipe that takes only texture from the teacher; drawn pictures keep their own mean in any case."""
    config = replace(TINY, **dict.fromkeys(("teacher", "teacher_feature", "adversary"), 0.0))
    batch = first_batch(photos, weights, teacher, config)
    target = from_bytes(by_sample(batch.target)) * 0.5 + 0.2  # room for the shift
    draw = torch.Generator().manual_seed(0)
    samples = torch.rand(target.shape, generator=draw).requires_grad_(True)
    photo = torch.tensor([True] * (len(batch.hr) - 1) + [False])

    def moved(share: float) -> Tensor:
        """How far the pull at each picture's first sample differs between the teacher and the shifted one, (n,)."""
        stage = stage_of(weights, teacher, replace(config, teacher_mean=share))
        pulls = [
            stage._pull(samples, batch.hr, photo, [(0, 0)] * len(batch.hr), x)[1][: len(batch.hr)]
            for x in (target, target + 0.2)
        ]
        return (pulls[0] - pulls[1]).abs().amax((1, 2, 3))

    off, on = moved(0.0), moved(1.0)
    assert float(off.max()) < 1e-6
    assert float(on[:-1].min()) > 1e-5
    assert float(on[-1]) < 1e-6


def test_a_shift_of_the_teachers_mean_arrives_in_the_student(photos: Path, weights: Path) -> None:
    """A teacher whose pictures are all brighter than the photos by 15 levels, as tuning might make them.

    Its weight in the recipe alone, `teacher`, does not get it through: colour, structure and pixels hold to the photo."""
    shift, config = 15 / 255, replace(TINY, adversary=0.0)
    model = tiny_model()
    last = [m for m in model.vae.decoder.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    batch = first_batch(photos, weights, Teacher(model, "as built"), config)
    for _ in range(3):  # clamping at 0 and 1 makes the way there less than linear
        mean = from_bytes(by_sample(batch.target)).mean((0, 2, 3))
        with torch.no_grad():
            last.bias.add_(batch.hr.mean((0, 2, 3)) + shift - mean)
        batch = first_batch(photos, weights, Teacher(model, "brighter"), config)
    brighter = from_bytes(batch.target).mean() - batch.hr.mean()
    assert float(brighter) == pytest.approx(shift, abs=0.01)

    arrived = {}
    for share in (0.0, 1.0):
        stage = stage_of(weights, Teacher(model, "brighter"), replace(config, teacher_mean=share))
        optimizer = torch.optim.Adam(stage.student.parameters(), lr=5e-3)
        for _ in range(20):
            optimizer.zero_grad()
            stage("student", batch, {})[0]["loss"].backward()
            optimizer.step()
        with torch.no_grad():
            picture = stage.student(batch.lr, batch.noise[:, 0, : stage.student.config.noise_channels])
        arrived[share] = float((picture.mean() - batch.hr.mean()) / brighter)
    assert abs(arrived[0.0]) < 0.25  # measured: 0.05
    assert 0.75 < arrived[1.0] < 1.35  # measured after these few steps: 1.16


def test_the_mean_passes_in_every_batch_or_is_refused() -> None:
    assert replace(TINY, teacher=0.0, teacher_feature=0.0, teacher_difference=0.0, teacher_mean=0.5).taught
    with pytest.raises(
        ValueError, match=r"fresh must be 0 where teacher_mean is above 0, got 2.*--set fresh=0"
    ):
        replace(PRESETS["pocket-texture"], teacher_mean=1.0)
    with pytest.raises(ValueError, match=r"teacher_mean must be from 0 to 1, got 2"):
        replace(TINY, teacher_mean=2.0)
