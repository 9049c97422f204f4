"""`gdposr train merge`: a run that names other runs becomes one folder that stands alone, in half the bytes if wanted."""

import json
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
for package in ("diffusers", "peft"):
    pytest.importorskip(package, reason="needs the extra `train`")

from lora import unet_lora  # noqa: E402
from safetensors.torch import load_file  # noqa: E402  (after importorskip)

from training.model.loading import MODEL_FILE, load_model  # noqa: E402
from training.model.merging import lineage, main, merge_run  # noqa: E402
from training.model.one_step import OneStepModel  # noqa: E402
from training.model.pocket import UnetShape, VaeShape, build_unet, build_vae  # noqa: E402
from training.model.saving import save_merged, save_run_model  # noqa: E402
from training.model.schedule import NoiseSchedule  # noqa: E402

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pretrain/, naosd/ on it and gdpo/, an adapter, on that; only to read."""
    folder = tmp_path_factory.mktemp("runs")
    vae = build_vae(VaeShape(width=8, latent_channels=4, encoder_blocks=(1,) * 4, decoder_blocks=(1,) * 4), 0)
    unet = build_unet(UnetShape(widths=(8, 16), layers=1, norm_groups=4), 4, 0)
    model = OneStepModel(vae, unet, None, NoiseSchedule.scaled_linear())
    common = {"data": "/somewhere/photos"}
    save_merged(model, folder / "pretrain" / "model", {"stage": "pretrain", "base": None, **common})
    save_merged(model, folder / "naosd" / "model", {"stage": "naosd", "base": "runs/pretrain", **common})
    adapted = unet_lora(load_model(folder / "naosd").unet, 2)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    save_run_model(
        folder / "gdpo" / "model",
        base=folder / "naosd",
        noise_timestep=250,
        denoise_timestep=100,
        unet_adapter=adapted,
        vae_adapter=None,
        provenance={"stage": "gdpo", "base": str(folder / "naosd"), **common},
    )
    return folder


def sample(source: Path) -> "torch.Tensor":
    model = load_model(source)
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(1, *model.latent_shape(16, 16), generator=draw)
    with torch.no_grad():
        return model(torch.rand(1, 3, 16, 16, generator=draw), noise, None)


def test_merged_run_stands_alone_and_gives_the_same_samples(runs: Path, tmp_path: Path) -> None:
    expected = sample(runs / "gdpo")
    assert not torch.equal(expected, sample(runs / "naosd"))
    moved = tmp_path / "runs"
    shutil.copytree(runs, moved)
    merge_run(moved / "gdpo", tmp_path / "alone")
    shutil.rmtree(moved)
    torch.testing.assert_close(sample(tmp_path / "alone"), expected, atol=1e-5, rtol=0)


def test_half_precision_takes_half_the_bytes_and_nearly_the_same_samples(runs: Path, tmp_path: Path) -> None:
    merge_run(runs / "gdpo", tmp_path / "whole")
    merge_run(runs / "gdpo", tmp_path / "half", half=True)
    for part in ("unet", "vae"):
        narrow = load_file(tmp_path / "half" / part / WEIGHTS)
        assert {value.dtype for value in narrow.values()} == {torch.float16}
        sizes = [
            sum(v.nbytes for v in load_file(tmp_path / n / part / WEIGHTS).values())
            for n in ("half", "whole")
        ]
        assert 2 * sizes[0] == sizes[1]
    assert next(load_model(tmp_path / "half").unet.parameters()).dtype == torch.float32
    torch.testing.assert_close(sample(tmp_path / "half"), sample(runs / "gdpo"), atol=5e-3, rtol=0)


def test_provenance_of_every_stage_is_kept_and_names_no_folder_of_the_machine(
    runs: Path, tmp_path: Path
) -> None:
    stages = lineage(runs / "gdpo")
    assert [(s["stage"], s["base"], s["data"]) for s in stages] == [
        ("gdpo", "naosd", "photos"),
        ("naosd", "pretrain", "photos"),
        ("pretrain", None, "photos"),
    ]
    merge_run(runs / "gdpo", tmp_path / "once")
    merge_run(tmp_path / "once", tmp_path / "twice")
    for name in ("once", "twice"):
        document = json.loads((tmp_path / name / MODEL_FILE).read_text())
        assert document["provenance"]["stages"] == stages
        assert str(runs) not in json.dumps(document)


def test_weights_too_large_for_half_precision_are_refused(runs: Path, tmp_path: Path) -> None:
    model = load_model(runs / "naosd")
    with torch.no_grad():
        next(model.unet.parameters()).fill_(1e5)
    save_merged(model, tmp_path / "loud")
    with pytest.raises(ValueError, match="values beyond 65504"):
        merge_run(tmp_path / "loud", tmp_path / "half", half=True)
    assert not (tmp_path / "half").exists()


def test_command_says_what_is_wrong(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(runs / "gdpo"), "--out", str(tmp_path / "alone"), "--half"]) == 0
    assert "model written to" in capsys.readouterr().out
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    for model, out, message in (
        (tmp_path / "none", tmp_path / "x", "no model at"),
        (runs / "gdpo", tmp_path / "photos", "holds other files"),
    ):
        assert main(["--model", str(model), "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
