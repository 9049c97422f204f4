"""Trained one-step models as rows of an accuracy table."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra `train`")
for package in ("diffusers", "peft", "transformers"):
    pytest.importorskip(package, reason="needs the extra `train`")

from cli_helpers import write_pairs  # noqa: E402
from lora import unet_lora, vae_encoder_lora  # noqa: E402
from make_miniature_sd21 import make_miniature, make_public_layout  # noqa: E402  (after importorskip)
from safetensors.torch import load_file  # noqa: E402

from calibration.measure.onestep import count_weights, restore, weight_files  # noqa: E402
from gdposr.accuracy.onestep_rows import OneStepRow, onestep_calls, onestep_methods, open_rows  # noqa: E402
from gdposr.console import UsageError  # noqa: E402
from training.model.loading import load_model  # noqa: E402
from training.model.one_step import OneStepModel  # noqa: E402
from training.model.pocket import build_unet, build_vae  # noqa: E402
from training.model.saving import save_merged, save_run_model  # noqa: E402
from training.model.schedule import NoiseSchedule  # noqa: E402
from training.stages.presets import PRETRAIN  # noqa: E402

Pixels = Callable[..., np.ndarray]
SEED = 5
WEIGHTS = "diffusion_pytorch_model.safetensors"


def numbers(*files: Path) -> int:
    return sum(tensor.numel() for file in files for tensor in load_file(file).values())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose model is merged, as a pretraining run leaves it."""
    shape = PRETRAIN["tiny"].shape
    vae, unet = build_vae(shape.vae, 0), build_unet(shape.unet, shape.vae.latent_channels, 0)
    run = tmp_path_factory.mktemp("runs") / "base"
    save_merged(OneStepModel(vae, unet, None, NoiseSchedule.scaled_linear()), run / "model")
    return run


@pytest.fixture(scope="module")
def tuned(base: Path) -> Path:
    """A run folder with adapters of both parts upon that base, as preference tuning leaves it."""
    model = load_model(base)
    unet, vae = unet_lora(model.unet, 2), vae_encoder_lora(model.vae, 2)
    with torch.no_grad():
        for name, weight in [*unet.named_parameters(), *vae.named_parameters()]:
            if "lora_B" in name:  # zero from the start: the adapter would change nothing
                weight.fill_(0.02)
    run = base.parent / "tuned"
    save_run_model(
        run / "model", base=base, noise_timestep=250, denoise_timestep=100, unet_adapter=unet, vae_adapter=vae,
        provenance={},
    )  # fmt: skip
    return run


@pytest.fixture
def rows(base: Path, tuned: Path) -> Iterator[list[OneStepRow]]:
    with open_rows([("base", str(base)), ("GDPO", str(tuned))], 4, 1) as opened:
        yield opened


def test_rows_say_what_they_are_and_what_they_cost(rows: list[OneStepRow], base: Path, tuned: Path) -> None:
    parts = [base / "model" / part / WEIGHTS for part in ("unet", "vae")]
    adapters = [tuned / "model" / f"{part}_adapter" / "adapter_model.safetensors" for part in ("unet", "vae")]
    expected = [parts, [*parts, *adapters]]
    for method, name, files in zip(onestep_methods(rows, SEED), ("base", "GDPO"), expected, strict=True):
        assert (method.name, method.kind, method.target, method.device) == (name, "peer", "torch", "cpu")
        assert method.parameters == numbers(*parts)  # merged: an adapter adds none
        assert method.bytes == sum(file.stat().st_size for file in files)
        assert method.tiled is None
        assert "UNet and VAE" in method.notes[0]


def test_pictures_are_those_of_the_model_with_the_runtime_s_noise(
    rows: list[OneStepRow], base: Path, tuned: Path, make_pixels: Pixels
) -> None:
    lr = make_pixels(19, 22)  # no size that these models take as it is
    plain, adapted = onestep_methods(rows, SEED)
    assert plain.samples is not None
    for method, run in ((plain, base), (adapted, tuned)):
        came, expected = method.upscale("a", lr), restore(load_model(run), lr, SEED)
        assert (came.shape, came.dtype) == ((76, 88, 3), np.uint8)
        assert np.abs(came.astype(int) - expected).max() <= 1  # another memory layout, another order of sums
    first, second = plain.samples(lr, 2)
    assert np.array_equal(first, plain.upscale("a", lr))
    assert np.abs(second.astype(int) - restore(load_model(base), lr, SEED, 1)).max() <= 1
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, onestep_methods(rows, SEED + 1)[0].upscale("a", lr))
    assert not np.array_equal(first, adapted.upscale("a", lr))


def test_a_timed_call_makes_the_whole_picture(rows: list[OneStepRow], make_pixels: Pixels) -> None:
    lr = make_pixels(16, 16)
    calls = onestep_calls(rows, lr)
    assert list(calls) == ["base", "GDPO"]
    for row in rows:
        assert np.array_equal(calls[row.name](), row.upscale(lr, 0))


def test_torch_has_the_threads_of_the_others_inside_only(base: Path) -> None:
    before = torch.get_num_threads()
    with open_rows([("base", str(base))], 4, before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(UsageError), open_rows([("no", "/no/where/at/all")], 4, before + 1):
        pass
    assert torch.get_num_threads() == before
    with open_rows([], 4, before + 1) as none:
        assert none == []
        assert torch.get_num_threads() == before


def test_a_text_encoder_is_not_counted(tmp_path: Path) -> None:
    folder = make_miniature(tmp_path / "sd")
    with open_rows([("sd", str(folder))], 4, 1) as (row,):
        assert row.parameters == numbers(folder / "unet" / WEIGHTS, folder / "vae" / WEIGHTS)
        assert row.bytes == sum((folder / part / WEIGHTS).stat().st_size for part in ("unet", "vae"))
        assert row.upscale(np.zeros((4, 4, 3), np.uint8), 0).shape == (16, 16, 3)


def test_weights_in_pieces_are_all_counted(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base / "model", tmp_path / "pieces"))
    whole = folder / "unet" / WEIGHTS
    model = load_model(base)
    whole.unlink()
    model.unet.save_pretrained(folder / "unet", max_shard_size=numbers(base / "model" / "unet" / WEIGHTS) * 2)
    pieces = sorted((folder / "unet").glob("*-of-*.safetensors"))
    assert len(pieces) > 1
    assert weight_files(folder) == [*pieces, folder / "vae" / WEIGHTS]
    assert count_weights(load_model(folder)) == count_weights(model) == numbers(*weight_files(folder))


def same(sr: np.ndarray, other: np.ndarray) -> bool:
    """Up to the last bits of the arithmetic, which a processor may take in another order: they round a pixel the other way."""
    return int(np.abs(sr.astype(int) - other).max()) <= 1


def test_the_public_layout_takes_its_text_from_the_given_base(make_pixels: Pixels, tmp_path: Path) -> None:
    folder, text = make_public_layout(tmp_path / "public"), make_miniature(tmp_path / "sd21")
    pixels = make_pixels(12, 10)
    with open_rows([("GDPO", str(folder))], 4, 1, str(text)) as (row,):
        assert same(row.upscale(pixels, SEED), restore(load_model(folder, base=text), pixels, SEED))
        assert row.parameters == numbers(*weight_files(folder))
    model = load_model(folder, base=text)
    with open_rows([("GDPO", str(folder))], 4, 1, str(text), "the photo") as (row,):
        assert same(row.upscale(pixels, SEED), restore(model, pixels, SEED, prompt="the photo"))
        assert not same(row.upscale(pixels, SEED), restore(model, pixels, SEED))


def test_a_model_that_cannot_be_a_row_is_told_by_its_name(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(source: Path, scale: int = 4) -> str:
        with pytest.raises(UsageError) as error, open_rows([("mine", str(source))], scale, 1):
            pass
        return str(error.value)

    assert told(tmp_path / "nothing").startswith(
        f"--onestep mine: no model at {tmp_path / 'nothing'}; expected"
    )
    assert "name it with --onestep-base" in told(
        make_public_layout(tmp_path / "public")
    )  # no scheduler, no text encoder
    assert "expected a model that enlarges 2 times, as the bundle does" in told(base, scale=2)
    (broken := Path(shutil.copytree(base / "model", tmp_path / "broken"))).joinpath("model.json").write_text(
        "{"
    )
    assert "is not JSON" in told(broken)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "'diffusers', which is not installed" in (message := told(base))
    assert 'pip install "gdposr[train]"' in message


# ---- the command


@pytest.fixture
def pairs(make_pixels: Pixels, tmp_path: Path) -> list[object]:
    return write_pairs(make_pixels, tmp_path)


def test_one_run_of_the_command_measures_models_beside_the_bundle(
    gdposr: Any, toy_bundle: Path, pairs: list[object], base: Path, tuned: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    code, out, err = gdposr(
        "accuracy", toy_bundle, *pairs, "--onestep", f"pocket base={base}", "--onestep", f"GDPO={tuned}",
        "--sr", f"copy={tmp_path / 'hr'}", "--budget", "max_psnr_loss=50", "--seed", SEED, "--threads", 1,
        "--rounds", 1, "--report", page, "--json",
    )  # fmt: skip
    assert code == 0, err
    result = json.loads(out)
    found = {row["name"]: row for row in result["rows"]}
    assert list(found) == ["bicubic", "copy", "pocket base", "GDPO", "fp32", "int8"]
    assert [gate["row"] for gate in result["gates"]] == ["int8"]  # the models have none
    lr = np.asarray(Image.open(tmp_path / "lr" / "1.png"))
    hr = np.asarray(Image.open(tmp_path / "hr" / "1.png"))
    for name, run in (("pocket base", base), ("GDPO", tuned)):
        row, model = found[name], load_model(run)
        assert (row["kind"], row["target"], row["seam"]) == ("peer", "torch", None)
        assert row["parameters"] == count_weights(model)
        assert row["bytes"] == sum(file.stat().st_size for file in weight_files(run))
        assert row["milliseconds"] > 0
        assert row["diversity"] > 0
        assert set(row["differences"]) == {"psnr", "ssim", "niqe"}
        expected = luma_psnr(restore(model, lr, SEED), hr)
        assert row["images"][1]["psnr"] == pytest.approx(expected, abs=0.02)
    assert ">GDPO<" in page.read_text()


@pytest.mark.parametrize("prompt", ["the photo", None])
def test_the_command_gives_models_the_prompt_that_is_folded_into_the_bundle(
    gdposr: Any, toy_copy: Path, pairs: list[object], prompt: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def record(*arguments: Any) -> None:
        given.append(arguments)
        raise UsageError("that was all")

    monkeypatch.setattr("gdposr.accuracy.onestep_rows.open_rows", record)
    manifest = json.loads((toy_copy / "manifest.json").read_text())
    manifest["provenance"] |= {} if prompt is None else {"prompt": prompt}
    (toy_copy / "manifest.json").write_text(json.dumps(manifest))
    code, _, _ = gdposr("accuracy", toy_copy, *pairs, "--onestep", "GDPO=anything", "--threads", 1)
    assert (code, given) == (2, [([("GDPO", "anything")], 4, 1, None, prompt)])


def luma_psnr(a: np.ndarray, b: np.ndarray) -> float:
    weights = np.array([65.481, 128.553, 24.966]) / 255
    return float(10 * np.log10(255**2 / np.mean(((a.astype(float) - b) @ weights) ** 2)))


def test_the_command_refuses_what_it_cannot_measure(
    gdposr: Any, toy_bundle: Path, pairs: list[object], base: Path
) -> None:
    words = ["accuracy", toy_bundle, *pairs, "--no-speed"]
    for wrong, told in (
        (["--onestep", "GDPO"], "--onestep expects NAME=RUN, got 'GDPO'"),
        (["--onestep", "GDPO=nowhere"], "--onestep GDPO: no model at nowhere"),
        (["--onestep", f"fp32={base}"], "two rows would be called 'fp32'"),
        (["--onestep", f"a={base}", "--onestep", f"a={base}"], "two rows would be called 'a'"),
    ):
        code, out, err = gdposr(*words, *wrong)
        assert (code, out) == (2, "")
        assert told in err
