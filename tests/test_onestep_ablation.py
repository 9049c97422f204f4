"""Measuring trained one-step models: any size, the runtime's noise, the table of an ablation."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("diffusers", reason="needs the extra `train`")

from calibration.measure.onestep import restore  # noqa: E402
from calibration.studies import onestep_ablation  # noqa: E402  (after importorskip)
from runtime.noise import noise_field  # noqa: E402
from training.model.loading import load_model  # noqa: E402
from training.model.one_step import OneStepModel  # noqa: E402
from training.model.pocket import build_unet, build_vae  # noqa: E402
from training.model.saving import save_merged  # noqa: E402
from training.model.schedule import NoiseSchedule  # noqa: E402
from training.stages.presets import PRETRAIN  # noqa: E402


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = PRETRAIN["tiny"].shape  # type: ignore[attr-defined]
    vae, unet = build_vae(shape.vae, 0), build_unet(shape.unet, shape.vae.latent_channels, 0)
    folder = tmp_path_factory.mktemp("model") / "model"
    save_merged(OneStepModel(vae, unet, None, NoiseSchedule.scaled_linear()), folder)
    return folder


def test_any_size_is_restored_with_the_noise_of_the_runtime(model_folder: Path) -> None:
    model = load_model(model_folder)
    lr = np.random.default_rng(0).integers(0, 256, (17, 22, 3), dtype=np.uint8)
    first, again, other = restore(model, lr, 3), restore(model, lr, 3), restore(model, lr, 4)
    assert first.shape == (68, 88, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    whole = np.ascontiguousarray(lr[:16, :20])
    channels, rows, columns = model.latent_shape(16, 20)
    noise = torch.from_numpy(noise_field(3, 0, rows, columns, channels=channels))[None]
    image = torch.from_numpy(whole).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        expected = (model(image, noise, None)[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert np.array_equal(restore(model, whole, 3), expected.astype(np.uint8))


@pytest.mark.slow
def test_ablation_measures_once_and_prints_its_table(
    model_folder: Path,
    photos: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from PIL import Image

    for side, size in (("LR", (32, 28)), ("HR", (128, 112))):
        (tmp_path / side).mkdir()
        for path in sorted(photos.iterdir())[:2]:
            Image.open(path).resize(size).save(tmp_path / side / path.name)
    monkeypatch.setattr(onestep_ablation, "VARIANTS", {"gdpo": ("group=2",), "dpo": ("objective=dpo",)})
    arguments = [
        *(
            "--preset",
            "tiny",
            "--device",
            "cpu",
            "--base",
            str(model_folder),
            "--data",
            str(photos),
            "--sqf-weights",
            str(weights),
        ),
        *("--lr", str(tmp_path / "LR"), "--hr", str(tmp_path / "HR"), "--every", "1"),
        *("--out", str(tmp_path / "out"), "--steps", "1", "--seeds", "2"),
        *("--set", "held_out=1", "--set", "crop=64", "--set", "batch=1", "--set", "group=2"),
    ]
    assert onestep_ablation.main(arguments) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| naosd", "| gdpo", "| dpo"]
    assert all(line.split(" | ")[1] == "2" for line in table[2:])
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert {row["preset"] for row in rows} == {"tiny"}
    assert all(
        np.isfinite(list(measured.values())).all() for row in rows for measured in row["measured"].values()
    )
    monkeypatch.setattr(onestep_ablation, "tune", None)  # nothing is run again
    assert onestep_ablation.main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == table


def test_variants_follow_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    """What the preset does already is left out; each variant is one change of it."""
    pocket, sd21 = (onestep_ablation.variants_of(preset) for preset in ("pocket", "sd21"))
    assert pocket[0] == sd21[0] == "gdpo"
    assert set(onestep_ablation.VARIANTS) - set(pocket) == {"gdpo, LR-conditioned"}
    assert set(onestep_ablation.VARIANTS) - set(sd21) == {"gdpo, candidate-conditioned"}
    assert onestep_ablation.changes_of("no-reference only", "pocket") == ("metrics=niqe",)
    assert onestep_ablation.changes_of("no-reference only", "sd21") == ("metrics=maniqa,musiq",)
    needed = [w for name in ("base", "data", "lr", "hr", "sqf-weights", "out") for w in (f"--{name}", "x")]
    assert onestep_ablation.main([*needed, "--device", "abacus"]) == 2
    assert "--device abacus: no such device" in capsys.readouterr().err
