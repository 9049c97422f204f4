"""Loading and saving: every layout on a miniature checkpoint, exact round trips, and what a save replaces."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
for package in ("diffusers", "peft", "transformers"):
    pytest.importorskip(package, reason="needs the extra `train`")

import loading_cases  # noqa: E402  (after importorskip)
from diffusers import AutoencoderTiny, UNet2DConditionModel  # noqa: E402
from loading_cases import WEIGHTS, adapted, run, save_run  # noqa: E402
from make_miniature_sd21 import main, make_public_layout  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from training.model.loading import MODEL_FILE, load_model, read_model_file  # noqa: E402
from training.model.one_step import OneStepModel  # noqa: E402
from training.model.saving import save_merged  # noqa: E402
from training.model.schedule import NoiseSchedule  # noqa: E402

sd21, public = loading_cases.sd21, loading_cases.public  # fixtures


def test_miniature_is_small_and_a_function_of_its_seed(
    sd21: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_rng_state()
    assert main([str(tmp_path / "again")]) == 0
    assert torch.equal(before, torch.get_rng_state())
    assert "MB" in capsys.readouterr().out
    files = sorted(path.relative_to(sd21) for path in sd21.rglob("*") if path.is_file())
    assert all((sd21 / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in files)
    assert sum((sd21 / name).stat().st_size for name in files) < 3e6
    other = make_public_layout(tmp_path / "other", seed=2)
    assert (other / "unet" / WEIGHTS).read_bytes() != (sd21 / "unet" / WEIGHTS).read_bytes()


def test_diffusers_layout(sd21: Path) -> None:
    model = load_model(str(sd21))
    assert (model.noise_timestep, model.denoise_timestep, model.dtype) == (250, 100, torch.float32)
    assert model.schedule == NoiseSchedule()
    assert model.text is not None
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert run(model).shape == (2, 3, 32, 32)
    other = load_model(sd21, noise_timestep=10, denoise_timestep=5, dtype=torch.bfloat16)
    assert (other.noise_timestep, other.denoise_timestep) == (10, 5)
    assert {parameter.dtype for parameter in other.parameters()} == {torch.bfloat16}
    assert run(other).dtype == torch.bfloat16


def test_diffusers_pipeline_reads_the_miniature(sd21: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(str(sd21), local_files_only=True)
    ours = load_model(sd21)
    theirs, _ = pipeline.encode_prompt("the photo", "cpu", 1, False)
    assert ours.text is not None
    torch.testing.assert_close(ours.text(["the photo"]), theirs, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours.unet.conv_in.weight, pipeline.unet.conv_in.weight)


def test_public_layout_takes_the_rest_from_its_base(sd21: Path, public: Path, tmp_path: Path) -> None:
    model = load_model(public, base=sd21)
    assert torch.equal(model.unet.conv_in.weight, load_file(public / "unet" / WEIGHTS)["conv_in.weight"])
    assert model.text is not None
    assert torch.equal(model.text(["a"]), load_model(sd21).text(["a"]))  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"no scheduler/scheduler_config\.json: with base=, name the model"):
        load_model(public)
    half = Path(shutil.copytree(public, tmp_path / "half"))
    shutil.copytree(sd21 / "scheduler", half / "scheduler")
    with pytest.raises(ValueError, match="has cross-attention, but there is no text_encoder/"):
        load_model(half)


@pytest.mark.parametrize(
    "parts", ["both", *(pytest.param(part, marks=pytest.mark.slow) for part in ("unet", "vae"))]
)
def test_run_folder_equals_the_adapted_model(sd21: Path, tmp_path: Path, parts: str) -> None:
    model = adapted(sd21)
    missing = {} if parts == "both" else {"vae_adapter" if parts == "unet" else "unet_adapter": None}
    save_run(model, tmp_path / "run" / "model", sd21, **missing)
    if parts == "unet":
        model.vae = load_model(sd21).vae
    elif parts == "vae":
        model.unet = load_model(sd21).unet
    model.set_timesteps(300, 90)
    for source in (tmp_path / "run", tmp_path / "run" / "model"):
        again = load_model(source)
        assert (again.noise_timestep, again.denoise_timestep) == (300, 90)
        torch.testing.assert_close(run(again), run(model), atol=1e-5, rtol=1e-5)
        assert not any("lora" in name for name, _ in again.named_modules())
    assert load_model(tmp_path / "run", noise_timestep=7).noise_timestep == 7
    assert read_model_file(tmp_path / "run" / "model")["provenance"] == {"steps": 7}


def test_runs_stand_on_runs_and_move_together(sd21: Path, public: Path, tmp_path: Path) -> None:
    place = tmp_path / "here"
    shutil.copytree(sd21, place / "sd21")
    shutil.copytree(public, place / "public")
    first = adapted(place / "public", base=place / "sd21")
    save_run(
        first, place / "naosd" / "model", place / "public", text_base=place / "sd21", denoise_timestep=80
    )
    second = adapted(place / "naosd", rank=2, seed=6)
    save_run(second, place / "gdpo" / "model", place / "naosd", vae_adapter=None)
    second.vae = load_model(place / "naosd").vae
    second.set_timesteps(300, 90)
    expected = run(second)
    assert read_model_file(place / "gdpo" / "model")["base"] == "../../naosd"
    place.rename(tmp_path / "there")
    torch.testing.assert_close(run(load_model(tmp_path / "there" / "gdpo")), expected, atol=1e-5, rtol=1e-5)
    (tmp_path / "there" / "naosd").rename(tmp_path / "gone")
    with pytest.raises(
        FileNotFoundError, match=r"the base of .*gdpo.*'\.\./\.\./naosd', cannot be loaded: no model at"
    ):
        load_model(tmp_path / "there" / "gdpo")


def test_noise_channels_are_kept_through_runs_and_merging(sd21: Path, tmp_path: Path) -> None:
    assert load_model(sd21).noise_channels == 4
    first = save_run(adapted(sd21), tmp_path / "naosd", sd21, noise_channels=2)
    second = save_run(adapted(first), tmp_path / "gdpo", first)
    tuned = load_model(second)
    assert tuned.noise_channels == 2
    save_merged(tuned, tmp_path / "merged")
    assert load_model(tmp_path / "merged").noise_channels == 2


def test_saving_a_run_again_replaces_it(sd21: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_run(adapted(sd21), folder, sd21)
    save_run(adapted(sd21, rank=2), folder, sd21, vae_adapter=None)
    assert sorted(path.name for path in folder.iterdir()) == [MODEL_FILE, "unet_adapter"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    folder.rename(tmp_path / "model.old")  # as an interruption between the two renames leaves it
    assert load_model(folder).noise_timestep == load_model(tmp_path).noise_timestep == 300
    with pytest.raises(ValueError, match="got none; use save_merged"):
        save_run(adapted(sd21), folder, sd21, vae_adapter=None, unet_adapter=None)


def test_a_card_beside_the_model_outlives_it(sd21: Path, tmp_path: Path) -> None:
    model, place = load_model(sd21), tmp_path / "merged"
    save_merged(model, place, {"steps": 1})
    (place / "README.md").write_text("a card")
    (place / "unet" / "leftover.bin").write_bytes(b"of the earlier model")
    save_merged(model, place, {"steps": 2})
    assert (place / "README.md").read_text() == "a card"
    assert not (place / "unet" / "leftover.bin").exists()
    assert read_model_file(place)["provenance"] == {"steps": 2}


def test_merged_model_equals_its_source(sd21: Path, tmp_path: Path) -> None:
    model = adapted(sd21)
    model.set_timesteps(200, 50)
    expected = run(model)
    save_merged(model, tmp_path / "merged", {"steps": 9})
    assert torch.equal(expected, run(model))  # the adapters are still on
    again = load_model(tmp_path / "merged")
    assert (again.noise_timestep, again.denoise_timestep) == (200, 50)
    torch.testing.assert_close(run(again), expected, atol=1e-5, rtol=1e-5)
    save_merged(again, tmp_path / "merged")  # over itself
    assert torch.equal(run(load_model(tmp_path / "merged")), run(again))
    stored = [path.read_text() for path in (tmp_path / "merged").rglob("*.json")]
    assert not any(str(tmp_path) in text or str(sd21) in text for text in stored)
    assert not [path for path in (tmp_path / "merged").rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]


def test_pocket_model_without_text(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            scaling_factor=0.5,
            shift_factor=0.25,
        )
        unet = UNet2DConditionModel(
            block_out_channels=(8, 8),
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * 2,
            mid_block_type=None,
            up_block_types=("UpBlock2D",) * 2,
            norm_num_groups=4,
        )
    model = OneStepModel(vae, unet, None, NoiseSchedule(prediction="v_prediction"), noise_timestep=150)
    save_merged(model, tmp_path / "pocket")
    again = load_model(tmp_path / "pocket")
    assert again.text is None
    assert again.schedule.prediction == "v_prediction"
    assert again.noise_timestep == 150
    assert torch.equal(run(model), run(again))
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    latent = again.encode_image(image)
    assert torch.equal(latent, (again.vae.encode(2 * image - 1).latents - 0.25) * 0.5)
    torch.testing.assert_close(
        again.decode(latent), again.vae.decode(again.vae.encode(2 * image - 1).latents).sample / 2 + 0.5
    )


def test_nothing_else_is_ever_replaced(sd21: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="photos holds other files and would be replaced"):
        save_merged(load_model(sd21), tmp_path / "photos")
    with pytest.raises(ValueError, match=r"cat\.png is a file"):
        save_merged(load_model(sd21), tmp_path / "photos" / "cat.png")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.png"]


def test_the_folder_one_stands_in(sd21: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sd21)
    save_merged(load_model("."), tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(run(load_model("here")), run(load_model(sd21)))


FULL_DISK = """
import resource, signal, sys
from training.model.loading import load_model
from training.model.saving import save_merged
model = load_model(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
try:
    save_merged(model, sys.argv[1])
except OSError as error:
    print(error)
"""


@pytest.mark.slow
def test_full_disk_at_the_model_save_leaves_the_old_model(sd21: Path, root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_merged(load_model(sd21), folder)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder)], cwd=root, capture_output=True, text=True, check=True
    )
    assert f"could not write the model to {folder}" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    load_model(folder)
