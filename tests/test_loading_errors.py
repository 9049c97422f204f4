"""What cannot be loaded is named: places without a model, broken checkpoints and runs, damaged weights, adapters that do not fit."""

import json
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
for package in ("diffusers", "peft", "transformers"):
    pytest.importorskip(package, reason="needs the extra `train`")

import loading_cases  # noqa: E402  (after importorskip)
from diffusers import UNet2DConditionModel  # noqa: E402
from loading_cases import WEIGHTS, adapted, save_run  # noqa: E402
from make_miniature_sd21 import make_miniature  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from training.model.loading import MODEL_FILE, load_model, read_model_file  # noqa: E402

sd21 = loading_cases.sd21  # a fixture


def test_places_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"notes\.txt is a file; expected a diffusers folder"):
        load_model(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match=r"unet/config\.json is missing|vae/config\.json is missing"):
        load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no model at .*nowhere; expected"):
        load_model(tmp_path / "nowhere")


def broken(sd21: Path, folder: Path) -> Path:
    return Path(shutil.copytree(sd21, folder))


def test_broken_checkpoints_are_named(sd21: Path, tmp_path: Path) -> None:
    folder = broken(sd21, tmp_path / "a")
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"block_out_channels": [16, 64]}))
    with pytest.raises(ValueError, match="unet: the weights do not fit the config"):
        load_model(folder)
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"_class_name": "UNet3D"}))
    with pytest.raises(ValueError, match="holds a UNet3D, expected UNet2DConditionModel"):
        load_model(folder)
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        load_model(folder)

    folder = broken(sd21, tmp_path / "b")
    weights = load_file(folder / "unet" / WEIGHTS)
    save_file(weights | {"conv_in.lora_A.weight": torch.zeros(1)}, folder / "unet" / WEIGHTS)
    with pytest.raises(ValueError, match=r"1 unexpected weights, such as conv_in\.lora_A\.weight"):
        load_model(folder)
    del weights["conv_out.bias"]
    save_file(weights, folder / "unet" / WEIGHTS)
    with pytest.raises(ValueError, match=r"1 missing weights, such as conv_out\.bias"):
        load_model(folder)
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"found: diffusion_pytorch_model\.bin\)\. Pickles"):
        load_model(folder)

    folder = broken(sd21, tmp_path / "c")
    (folder / "scheduler" / "scheduler_config.json").write_text('{"beta_schedule": "linear"}')
    with pytest.raises(ValueError, match="lacks num_train_timesteps"):
        load_model(folder)
    text = load_file(folder / "text_encoder" / "model.safetensors")
    shutil.copy(sd21 / "scheduler" / "scheduler_config.json", folder / "scheduler")
    del text["text_model.final_layer_norm.weight"]
    save_file(text, folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="not a complete CLIP text model"):
        load_model(folder)


def test_broken_runs_are_named(sd21: Path, tmp_path: Path) -> None:
    folder = save_run(adapted(sd21), tmp_path / "run", sd21, vae_adapter=None)
    good = read_model_file(folder)
    for change, says in (
        ({"kind": "student"}, "describes no model: kind must be adapters or merged"),
        ({"format_version": 2}, "format_version 2, this program reads 1"),
        ({"base": None}, "lacks base"),
        ({"adapters": ["text_adapter"]}, "names an adapter 'text_adapter'"),
        ({"adapters": ["vae_adapter"]}, r"adapter_config\.json is missing"),
        ({"base": "."}, "leads back to itself"),
        ({"noise_timestep": 1000}, r"0 \.\. 999"),
    ):
        (folder / MODEL_FILE).write_text(json.dumps({**good, **change}))
        with pytest.raises((ValueError, FileNotFoundError), match=says):
            load_model(folder)
    (folder / MODEL_FILE).write_text("{")
    with pytest.raises(ValueError, match=r"model\.json is not JSON"):
        load_model(folder)


def test_adapter_of_another_size_is_refused(sd21: Path, tmp_path: Path) -> None:
    folder = save_run(adapted(sd21), tmp_path / "run", sd21)
    config = json.loads((sd21 / "unet" / "config.json").read_text())
    other = broken(sd21, tmp_path / "wide")
    UNet2DConditionModel.from_config(
        config | {"block_out_channels": [24, 32], "attention_head_dim": [3, 4]}
    ).save_pretrained(str(other / "unet"))
    document = read_model_file(folder)
    (folder / MODEL_FILE).write_text(json.dumps({**document, "base": str(other)}))
    with pytest.raises(
        ValueError, match=r"unet_adapter does not fit this UNet2DConditionModel: .* the base needs"
    ):
        load_model(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_damaged_weights_are_named(part: str, tmp_path: Path) -> None:
    folder = make_miniature(tmp_path / "sd21")
    file = next((folder / part).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=part):
        load_model(folder)
