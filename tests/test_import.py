"""`gdposr train import`: LoRA files as the public code pickles them, made here by peft in the way that code makes them."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
for package in ("diffusers", "peft", "transformers"):
    pytest.importorskip(package, reason="needs the extra `train`")

from make_miniature_sd21 import make_miniature  # noqa: E402  (after importorskip)
from peft import LoraConfig  # noqa: E402

from training.model.loading import load_model, read_model_file  # noqa: E402
from training.model.one_step import OneStepModel  # noqa: E402
from training.model.published import main  # noqa: E402

GROUPS = ("default_encoder", "default_decoder", "default_others")


@pytest.fixture(scope="module")
def sd21(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only to read."""
    return make_miniature(tmp_path_factory.mktemp("models") / "sd21")


def layers(module: Any, kinds: tuple[str, ...]) -> list[str]:
    names = [
        name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    ]
    return [name for name in names if any(kind in name for kind in kinds)]


def train_as_published(model: OneStepModel, tuning: bool) -> dict[str, Any]:
    """Adapters added by diffusers and peft, one call for each group of layers, with weights that say something.

    tuning: LoRA of the UNet alone, as preference tuning; else conv_in in full and the VAE's encoder too, as NAOSD.
    Returns what the public code would pickle; the model then computes with the adapters."""
    unet: Any = model.unet
    named = layers(unet, ("to_", "conv", "proj_", "ff.net"))
    groups: dict[str, list[str]] = {
        "default_encoder": [name for name in named if "down_blocks" in name or name == "conv_in"],
        "default_decoder": [name for name in named if "up_blocks" in name],
    }
    groups["default_others"] = [name for name in named if not any(name in group for group in groups.values())]
    draw = torch.Generator().manual_seed(4)
    for name, group in groups.items():
        unet.add_adapter(
            LoraConfig(r=4, init_lora_weights="gaussian", target_modules=group), adapter_name=name
        )
    unet.set_adapter(list(GROUPS))
    saved: dict[str, Any] = {f"unet_lora_{name[8:]}_modules": group for name, group in groups.items()}
    with torch.no_grad():
        for name, value in unet.named_parameters():
            if "lora_B" in name or ("conv_in" in name and "lora" not in name and not tuning):
                value.add_(0.02 * torch.randn(value.shape, generator=draw))
    state = {
        name: value.clone()
        for name, value in unet.state_dict().items()
        if "lora" in name or "conv_in" in name
    }
    saved |= {"rank_unet": 4, "state_dict_unet": state}
    if tuning:
        return saved
    vae: Any = model.vae
    sides = {
        "encoder": [*layers(vae, ("encoder.",)), "quant_conv"],
        "decoder": [*layers(vae, ("decoder.",)), "post_quant_conv"],
    }
    for side, group in sides.items():
        vae.add_adapter(
            LoraConfig(r=4, init_lora_weights="gaussian", target_modules=group),
            adapter_name=f"default_{side}",
        )
        saved[f"vae_lora_{side}_modules"] = group
    vae.set_adapter(["default_encoder"])
    with torch.no_grad():
        for name, value in vae.named_parameters():
            if "lora_B.default_encoder" in name:
                value.add_(0.02 * torch.randn(value.shape, generator=draw))
    state = {name: value.clone() for name, value in vae.state_dict().items() if "lora" in name}
    return saved | {"rank_vae": 4, "vae_lora_others_modules": [], "state_dict_vae": state}


def run(model: OneStepModel) -> "torch.Tensor":
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(1, *model.latent_shape(8, 8), generator=draw)
    with torch.no_grad():
        return model(torch.rand(1, 3, 8, 8, generator=draw), noise, ("the photo",))


def test_imported_naosd_equals_the_published_model(
    sd21: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(sd21)
    torch.save(train_as_published(model, tuning=False), tmp_path / "model_501.pkl")
    out = tmp_path / "naosd"
    assert main([str(tmp_path / "model_501.pkl"), "--base", str(sd21), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    decoder = len(layers(load_model(sd21).vae, ("decoder.",))) + 1
    assert f"note: vae: {decoder} layers were never trained" in said
    assert "conv_in of" not in said
    again = load_model(out)
    torch.testing.assert_close(run(again), run(model), atol=1e-5, rtol=1e-5)
    assert (run(again) - run(load_model(sd21))).abs().max() > 1e-2
    assert not [path for path in out.rglob("*") if path.suffix in (".pkl", ".pt", ".bin")]
    assert read_model_file(out)["provenance"]["imported"] == "model_501.pkl"


def test_tuning_is_imported_onto_the_imported_base(
    sd21: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(train_as_published(load_model(sd21), tuning=False), tmp_path / "naosd.pkl")
    assert main([str(tmp_path / "naosd.pkl"), "--base", str(sd21), "--out", str(tmp_path / "naosd")]) == 0
    model = load_model(tmp_path / "naosd")
    torch.save(train_as_published(model, tuning=True), tmp_path / "gdpo.pkl")
    capsys.readouterr()
    for base, out in ((tmp_path / "naosd", "right"), (sd21, "wrong")):
        assert main([str(tmp_path / "gdpo.pkl"), "--base", str(base), "--out", str(tmp_path / out)]) == 0
        said = capsys.readouterr().out
        assert ("belongs on the merged NAOSD model" in said) is (out == "wrong")
    torch.testing.assert_close(run(load_model(tmp_path / "right")), run(model), atol=1e-5, rtol=1e-5)


def test_strength_is_the_default_of_peft(sd21: Path, tmp_path: Path) -> None:
    model = load_model(sd21)
    torch.save(train_as_published(model, tuning=True), tmp_path / "a.pkl")
    arguments = [
        str(tmp_path / "a.pkl"),
        "--base",
        str(sd21),
        "--out",
        str(tmp_path / "weak"),
        "--lora-alpha",
        "4",
    ]
    assert main(arguments) == 0
    assert (run(load_model(tmp_path / "weak")) - run(model)).abs().max() > 1e-3


class Dangerous:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["K_MARK"],)


def test_code_in_a_pickle_never_runs(
    sd21: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "ran"
    monkeypatch.setenv("K_MARK", str(mark))
    torch.save({"rank_unet": 4, "state_dict_unet": {"x": Dangerous()}}, tmp_path / "new.pkl")
    (tmp_path / "old.pkl").write_bytes(pickle.dumps({"state_dict_unet": Dangerous()}))
    for name in ("new", "old"):
        assert main([str(tmp_path / f"{name}.pkl"), "--base", str(sd21), "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert f"{name}.pkl cannot be read as tensors, names and numbers alone" in said
        assert "weights_only" not in said
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


def test_wrong_files_are_named(sd21: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = train_as_published(load_model(sd21), tuning=True)
    state = good["state_dict_unet"]
    name = next(key for key in state if "lora_A" in key and "attn1" in key)
    layer, b = name.partition(".lora_A")[0], name.replace("lora_A", "lora_B")
    cases: list[tuple[Any, str]] = [
        ([1, 2], "expected rank_unet and state_dict_unet, got list"),
        ({"conv_in.weight": torch.zeros(1)}, r"got conv_in.weight. Merged weights are no LoRA"),
        (good | {"rank_unet": 0}, "rank_unet must be a whole number above 0, got 0"),
        (good | {"rank_unet": 8}, "must have A and B of rank 8, got {'A': (4, "),
        (
            good | {"state_dict_unet": {k: v for k, v in state.items() if k != b}},
            f"{layer} must have A and B of rank 4",
        ),
        (
            good | {"state_dict_unet": state | {"skip.weight": torch.zeros(1)}},
            "has skip.weight, expected LoRA weights",
        ),
        (
            good | {"state_dict_unet": state | {b: state[b] / 0}},
            f"the LoRA of {layer} has values that are not finite",
        ),
        (
            good
            | {"state_dict_unet": {k.replace("down_blocks.0", "down_blocks.7"): v for k, v in state.items()}},
            "does not fit this UNet2DConditionModel: ",
        ),
    ]
    for document, says in cases:
        torch.save(document, tmp_path / "a.pkl")
        assert main([str(tmp_path / "a.pkl"), "--base", str(sd21), "--out", str(tmp_path / "out")]) == 2
        assert says in capsys.readouterr().err
    for content in (b"", b"no pickle", (tmp_path / "a.pkl").read_bytes()[:2000]):
        (tmp_path / "a.pkl").write_bytes(content)
        assert main([str(tmp_path / "a.pkl"), "--base", str(sd21), "--out", str(tmp_path / "out")]) == 2
        assert "a.pkl cannot be read as tensors" in capsys.readouterr().err
    assert main([str(tmp_path / "gone.pkl"), "--base", str(sd21), "--out", str(tmp_path / "out")]) == 2
    assert "gone.pkl" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
