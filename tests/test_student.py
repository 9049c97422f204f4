"""The student: contract of its two graphs, receptive field, bicubic base, saving and loading."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra `export`")

from safetensors import SafetensorError  # noqa: E402  (after importorskip)

from export.student import interpolate  # noqa: E402
from export.student.model import checkpoint as checkpoints  # noqa: E402
from export.student.model.checkpoint import load_student, save_student  # noqa: E402
from export.student.model.growing import widened  # noqa: E402
from export.student.model.kernels import bicubic_weight  # noqa: E402
from export.student.model.network import NOISE_PATH, Student, StudentConfig  # noqa: E402

SMALL = StudentConfig(width=8, encoder_blocks=1, generator_blocks=1, detail=4)


def lively(config: StudentConfig = SMALL) -> Student:
    """A student whose residual is strong enough to see; fixed weights."""
    torch.manual_seed(0)
    student = Student(config).eval()
    with torch.no_grad():
        for block in (*student.encoder.blocks, *student.generator.blocks):
            block.conv2.weight.mul_(4)
        student.generator.last.weight.mul_(10)
        if student.generator.trust is not None:
            student.generator.trust.weight.normal_(std=0.3)
    return student


def inputs(config: StudentConfig, height: int, width: int) -> tuple["torch.Tensor", "torch.Tensor"]:
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(2, config.noise_channels, height // config.fold, width // config.fold, generator=draw)
    return torch.rand(2, 3, height, width, generator=draw), noise


def test_shapes_follow_the_contract_at_any_even_size() -> None:
    student = lively()
    image, noise = inputs(SMALL, 14, 22)
    features, base = student.encoder(image)
    assert features.shape == (2, 8, 7, 11)
    assert base.shape == (2, 48, 14, 22)
    sr = student.generator(features, base, noise)
    assert sr.shape == (2, 3, 56, 88)
    assert float(sr.min()) >= 0
    assert float(sr.max()) <= 1


def test_base_is_pillows_bicubic_away_from_the_border() -> None:
    image = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(2))
    base = torch.pixel_shuffle(torch.nn.functional.conv2d(image, bicubic_weight(4), padding=2, groups=3), 4)[
        0
    ].numpy()
    for plane, ours in zip(image[0].numpy(), base, strict=True):
        theirs = np.asarray(Image.fromarray(plane).resize((96, 80), Image.Resampling.BICUBIC))
        np.testing.assert_allclose(ours[12:-12, 12:-12], theirs[12:-12, 12:-12], atol=1e-5)


def test_a_checkpoint_names_no_place_of_the_machine(tmp_path: Path) -> None:
    earlier = {"stage": "student-core", "data": str(tmp_path / "album"), "steps": 3}
    given = {"init": "runs/core", "pictures": [str(tmp_path / "taught")], "history": [earlier], "prior": None}
    save_student(lively(), tmp_path / "run", given)
    assert str(tmp_path) not in (tmp_path / "run" / "config.json").read_text()
    assert load_student(tmp_path / "run")[1] == {
        "init": "runs/core", "pictures": ["taught"], "history": [{**earlier, "data": "album"}], "prior": None
    }  # fmt: skip


def test_noise_changes_the_picture_and_nothing_else_does() -> None:
    student = lively()
    image, noise = inputs(SMALL, 16, 16)
    assert torch.equal(student(image, noise), student(image, noise))
    assert float((student(image, noise) - student(image, noise.flip(0))).abs().max()) > 0.01


@pytest.mark.parametrize(
    "shape",
    [SMALL, replace(SMALL, far_blocks=2, fold=1), replace(SMALL, fold=1, consistent=True)],
    ids=["plain", "far blocks", "consistent"],
)
def test_receptive_field_is_as_stated(shape: StudentConfig) -> None:
    student = lively(shape).double()
    radius = shape.receptive_radius
    side = 4 * radius
    image, noise = (x[:1].double() for x in inputs(shape, side, side))
    before = student(image, noise)
    centre = side // 2
    image[:, :, centre, centre] += 0.1
    changed = (student(image, noise) - before).abs().amax((0, 1)).nonzero() // 4  # LR pixels
    reach = int(max(centre - changed.min(), changed.max() - centre))
    assert reach <= radius
    assert reach >= radius - shape.fold


def test_default_student_keeps_its_budget() -> None:
    student = Student()
    assert student.parameters_total <= 4_000_000
    assert student.config.receptive_radius == 26


@pytest.mark.parametrize("values", [{"width": 0}, {"width": "80"}, {"far_blocks": -1}, {"depth": 3}])
def test_wrong_settings_are_refused(values: dict) -> None:
    with pytest.raises(ValueError, match="student"):
        StudentConfig.from_dict(values)


def test_widened_student_gives_the_same_pictures_and_learns_with_its_new_channels() -> None:
    torch.manual_seed(0)
    narrow = Student(SMALL)
    wide = widened(narrow, replace(SMALL, width=SMALL.width + 4, detail=SMALL.detail + 2))
    image = torch.rand(1, 3, 16, 16)
    noise = torch.randn(1, SMALL.noise_channels, 8, 8)
    torch.testing.assert_close(wide(image, noise), narrow(image, noise), atol=1e-6, rtol=0)
    wide.generator.residual(*wide.encoder(image)[:1], noise).square().sum().backward()
    for name, parameter in wide.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    fresh = wide.encoder.stem.weight.detach()[SMALL.width :]
    assert fresh.abs().min() > 0
    for wrong in ({"width": SMALL.width - 1}, {"encoder_blocks": SMALL.encoder_blocks + 1}):
        with pytest.raises(ValueError, match="cannot become one of"):
            widened(narrow, replace(SMALL, **wrong))


def test_a_mixture_tells_of_each_run_once() -> None:
    start, more, other = ({"steps": steps} for steps in (1, 2, 3))
    first = {"steps": 7, "history": [start, more]}
    second = {"steps": 9, "history": [start, other]}
    mixed = interpolate.told(first, second, 0.3)
    parents = {"first": {"steps": 7}, "second": {"steps": 9}}
    assert mixed == {
        "interpolated": {"share_of_second": 0.3, "noise": 1.0, "contrast": 1.0, **parents},
        "history": [start, more, other],
    }
    assert interpolate.told(mixed, first, 0.5)["history"] == [start, more, other]
    assert interpolate.told({"steps": 6}, first, 0.5)["history"] == [start, more]
    after = {"steps": 9, "history": [start, {"steps": 7}]}
    assert interpolate.told(after, {"steps": 7, "history": [start]}, 0.5)["history"] == [start]


def test_interpolated_student_lies_between_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = lively(), lively()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(0.1)
    for name, student in (("first", first), ("second", second)):
        save_student(student, tmp_path / name, {"steps": len(name)})
    folders = [str(tmp_path / name) for name in ("first", "second")]
    assert interpolate.main([*folders, "--share", "0.25", "--out", str(tmp_path / "between")]) == 0
    between, provenance = load_student(tmp_path / "between")
    for name, value in between.named_parameters():
        torch.testing.assert_close(value, first.get_parameter(name) + 0.025, atol=1e-6, rtol=0)
    assert interpolate.main([*folders, "--share", "1", "--half", "--out", str(tmp_path / "half")]) == 0
    for name, value in load_student(tmp_path / "half")[0].named_parameters():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, second.get_parameter(name).half().float(), atol=0, rtol=0)
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 0.6 * (
        tmp_path / "between" / "model.safetensors"
    ).stat().st_size
    told = provenance["interpolated"]
    assert (told["share_of_second"], told["first"]["steps"], told["second"]["steps"]) == (0.25, 5, 6)
    assert told["noise"] == 1.0
    capsys.readouterr()
    save_student(lively(replace(SMALL, width=12)), tmp_path / "wide")
    for wrong, message in (
        ([*folders, "--share", "2"], "from 0"),
        ([*folders, "--share", "0.5", "--noise", "0"], "factor above 0"),
        ([*folders, "--share", "0.5", "--noise", "nan"], "noise must be a factor above 0"),
        ([*folders, "--share", "0.5", "--contrast", "-1"], "contrast must be a factor above 0"),
        ([folders[0], str(tmp_path / "wide"), "--share", "0.5"], "one shape"),
        ([folders[0], str(tmp_path), "--share", "0.5"], "not a student checkpoint"),
    ):
        assert interpolate.main([*wrong, "--out", str(tmp_path / "x")]) == 2
        assert message in capsys.readouterr().err


def test_a_mixture_can_take_its_noise_as_stronger(tmp_path: Path) -> None:
    """A factor in the weights does what the same factor in the noise does."""
    folders = []
    for name in ("first", "second"):
        save_student(lively(), tmp_path / name, {})
        folders.append(str(tmp_path / name))
    mixed = {}
    for noise in ("1", "1.5"):
        out = tmp_path / noise
        assert interpolate.main([*folders, "--share", "0.5", "--noise", noise, "--out", str(out)]) == 0
        mixed[noise], provenance = load_student(out)
        assert provenance["interpolated"]["noise"] == float(noise)
    lr, noise = torch.rand(1, 3, 16, 16), torch.randn(1, SMALL.noise_channels, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(mixed["1.5"](lr, noise), mixed["1"](lr, 1.5 * noise), atol=1e-5, rtol=0)
        assert (mixed["1.5"](lr, noise) - mixed["1"](lr, noise)).abs().max() > 1e-3


def test_contrast_is_a_factor_on_what_is_drawn_beyond_bicubic(tmp_path: Path) -> None:
    save_student(lively(), tmp_path / "one", {})
    folders = [str(tmp_path / "one")] * 2
    made = {}
    for contrast in ("1", "1.5"):
        options = ["--share", "0", "--contrast", contrast, "--out", str(tmp_path / contrast)]
        assert interpolate.main([*folders, *options]) == 0
        made[contrast], provenance = load_student(tmp_path / contrast)
        assert provenance["interpolated"]["contrast"] == float(contrast)
    with torch.no_grad():
        noise, image = torch.randn(1, SMALL.noise_channels, 8, 8), torch.rand(1, 3, 16, 16)
        features, base = made["1"].encode(image)
        plain, strong = (student.generator.picture(features, base, noise) for student in made.values())
        bicubic = torch.pixel_shuffle(base, SMALL.scale)
    assert (plain - bicubic).abs().max() > 1e-3
    torch.testing.assert_close(strong - bicubic, 1.5 * (plain - bicubic), atol=1e-5, rtol=0)


def test_a_core_takes_the_noise_of_another_student(tmp_path: Path) -> None:
    """With share 0 its own picture stays, to the bit of a moved bias, and the noise has the effect that the factor asks for."""
    core = lively(replace(SMALL, noise_gate=False))
    with torch.no_grad():
        core.generator.noise.weight.zero_()
    noisy = lively(replace(SMALL, noise_gate=True))
    mixed = interpolate.interpolate(core, noisy, 0.0, noise=0.5)
    for name in NOISE_PATH:
        factor = 0.5 if name == "noise.weight" else 1.0
        assert torch.equal(
            mixed.generator.get_parameter(name), factor * noisy.generator.get_parameter(name)
        ), name
    lr, noise = torch.rand(1, 3, 16, 16), torch.randn(1, SMALL.noise_channels, 8, 8)
    with torch.no_grad():
        silent = mixed(lr, torch.zeros_like(noise))
        torch.testing.assert_close(silent, core(lr, noise), atol=1e-5, rtol=0)
        assert (mixed(lr, noise) - silent).abs().max() > 1e-3
        halfway = interpolate.interpolate(core, noisy, 0.5)
    torch.testing.assert_close(
        halfway.encoder.stem.weight, (core.encoder.stem.weight + noisy.encoder.stem.weight) / 2
    )
    assert torch.equal(halfway.generator.gate.weight, noisy.generator.gate.weight)
    with pytest.raises(ValueError, match="one shape"):
        interpolate.interpolate(noisy, core, 0.0)


def test_equal_weights_give_an_equal_file(tmp_path: Path) -> None:
    student = lively()
    for k in range(8):
        save_student(student, tmp_path / str(k), {"minutes": k})
    assert len({(tmp_path / str(k) / "model.safetensors").read_bytes() for k in range(8)}) == 1


def test_saved_student_comes_back_equal(tmp_path: Path) -> None:
    student = lively()
    save_student(student, tmp_path / "run", {"steps": 3})
    again, provenance = load_student(tmp_path / "run")
    assert provenance == {"steps": 3}
    assert again.config == SMALL
    image, noise = inputs(SMALL, 16, 16)
    assert torch.equal(student(image, noise), again(image, noise))


def test_student_replaces_an_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    for steps in (1, 2):
        save_student(lively(), tmp_path / "own", {"steps": steps})
        assert load_student(tmp_path / "own")[1] == {"steps": steps}
    assert [path.name for path in tmp_path.iterdir()] == ["own"]
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "own").stat().st_mode == (
        tmp_path / "plain"
    ).stat().st_mode  # open to whom folders are
    (tmp_path / "own" / "notes.txt").write_text("kept")
    save_student(lively(), tmp_path / "own", {"steps": 3})
    assert load_student(tmp_path / "own")[1] == {"steps": 3}
    assert (tmp_path / "own" / "notes.txt").read_text() == "kept"
    assert len(list((tmp_path / "own").iterdir())) == 3
    with pytest.raises(FileExistsError, match=r"notes\.txt is a file, expected a folder"):
        save_student(lively(), tmp_path / "own" / "notes.txt")


@pytest.mark.parametrize("others", [False, True])
def test_failing_save_leaves_the_earlier_student_whole(
    others: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "student"
    save_student(lively(), folder, {"steps": 1})
    if others:
        (folder / "notes.txt").write_text("kept")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(tensors: dict, path: Path, metadata: dict) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device")  # what safetensors makes of a full disk

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_student(Student(SMALL), folder, {"steps": 2})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    with pytest.raises(OSError, match="No space left"):
        save_student(Student(SMALL), tmp_path / "first")
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_wrong_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_student(tmp_path)
    save_student(lively(), tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(document | {"model": "teacher"}))
    with pytest.raises(ValueError, match="'teacher', expected a 'student'"):
        load_student(tmp_path)
    for wider in ({"width": 16}, {"generator_blocks": 2}):
        changed = document | {"config": document["config"] | wider}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match="does not fit the shape"):
            load_student(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(document))
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut off"):
        load_student(tmp_path)
