"""Loading and saving: every layout on a miniature checkpoint, exact round trips, and errors that say what to do."""

import json
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
for package in ("diffusers", "peft", "transformers"):
    pytest.importorskip(package, reason="needs the extra `train`")

from diffusers import AutoencoderTiny, UNet2DConditionModel  # noqa: E402  (after importorskip)
from lora import unet_lora, vae_encoder_lora  # noqa: E402
from make_miniature_sd21 import main, make_miniature, make_public_layout  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from export.load import load_source  # noqa: E402
from training.model.loading import MODEL_FILE, load_model, read_model_file  # noqa: E402
from training.model.one_step import OneStepModel  # noqa: E402
from training.model.saving import save_merged, save_run_model  # noqa: E402
from training.model.schedule import NoiseSchedule  # noqa: E402

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def sd21(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only to read."""
    return make_miniature(tmp_path_factory.mktemp("models") / "sd21")


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only to read."""
    return make_public_layout(tmp_path_factory.mktemp("models") / "gdpo")


def run(model: OneStepModel, prompts: tuple[str, ...] = ("a cat", "the photo")) -> "torch.Tensor":
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(2, *model.latent_shape(8, 8), generator=draw)
    with torch.no_grad():
        return model(torch.rand(2, 3, 8, 8, generator=draw), noise, prompts)


def adapted(source: Path, rank: int = 4, seed: int = 5, **arguments: object) -> OneStepModel:
    """The model at source with adapters on UNet and VAE encoder that say something."""
    model = load_model(source, **arguments)
    model.unet, model.vae = unet_lora(model.unet, rank), vae_encoder_lora(model.vae, rank)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return model


def save_run(model: OneStepModel, folder: Path, base: Path, **arguments: object) -> Path:
    settings = {
        "noise_timestep": 300,
        "denoise_timestep": 90,
        "unet_adapter": model.unet,
        "vae_adapter": model.vae,
        "provenance": {"steps": 7},
        **arguments,
    }
    save_run_model(folder, base=base, **settings)
    return folder


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


def test_places_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"notes\.txt is a file; expected a diffusers folder"):
        load_model(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match=r"unet/config\.json is missing|vae/config\.json is missing"):
        load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no model at .*nowhere; expected"):
        load_model(tmp_path / "nowhere")


def test_the_folder_one_stands_in(sd21: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sd21)
    save_merged(load_model("."), tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(run(load_model("here")), run(load_model(sd21)))


def test_hub_name_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError,
        match=r"there is no folder nobody/no-such-model, and it cannot be loaded as a hub name .* check the name and the net",
    ):
        load_model("nobody/no-such-model")


def test_a_path_that_is_gone_is_not_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by a name of the repository's own folders nor as a checkpoint to export."""

    def refused(*args: object, **more: object) -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refused)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "export" / "weights").mkdir(parents=True)
    gone = "export/weights/pocket-teacher"
    with pytest.raises(
        FileNotFoundError, match=rf"no model at {gone}; .* docs/training\.md tells how to train"
    ):
        load_model(gone)
    with pytest.raises(
        FileNotFoundError, match=rf"{gone} is not a student .* docs/training\.md tells how to"
    ):
        load_source(Path(gone))
    with pytest.raises(FileNotFoundError, match="the hub was asked"):
        load_model("weights/pocket-teacher/unet")


@pytest.fixture
def hub(sd21: Path, public: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """huggingface_hub answers from local folders: base/sd21, and Joypop/GDPO with its model in ckp/GDPOSR."""
    shutil.copytree(sd21, tmp_path / "hub" / "base" / "sd21")
    shutil.copytree(public, tmp_path / "hub" / "Joypop" / "GDPO" / "ckp" / "GDPOSR")
    (tmp_path / "hub" / "Joypop" / "GDPO" / "ckp" / "DAPE.pth").write_bytes(b"a pickle")

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        fetched = tmp_path / "cache" / name
        for path in sorted((tmp_path / "hub" / name).rglob("*")):
            inside = path.relative_to(tmp_path / "hub" / name)
            if path.is_file() and any(fnmatch(inside.as_posix(), pattern) for pattern in allow_patterns):
                (fetched / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, fetched / inside)
        fetched.mkdir(parents=True, exist_ok=True)
        return str(fetched)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def test_a_folder_of_a_hub_repository(sd21: Path, public: Path, hub: Path) -> None:
    model = load_model("Joypop/GDPO/ckp/GDPOSR", base="base/sd21")
    assert torch.equal(run(model), run(load_model(public, base=sd21)))
    fetched = {path.relative_to(hub).as_posix() for path in (hub / "Joypop").rglob("*") if path.is_file()}
    assert fetched == {
        f"Joypop/GDPO/ckp/GDPOSR/{part}/{file}"
        for part in ("unet", "vae")
        for file in ("config.json", WEIGHTS)
    }


def test_runs_on_a_folder_of_a_hub_repository(hub: Path, tmp_path: Path) -> None:
    source = "Joypop/GDPO/ckp/GDPOSR"
    model = adapted(source, base="base/sd21")
    folder = save_run(model, tmp_path / "run" / "model", source, text_base="base/sd21")
    assert read_model_file(folder)["base"] == source
    model.set_timesteps(300, 90)
    torch.testing.assert_close(run(load_model(tmp_path / "run")), run(model), atol=1e-5, rtol=1e-5)


def test_the_wrong_folder_of_a_hub_repository(hub: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the repository Joypop/GDPO has no model in ckp/NAOSD/"):
        load_model("Joypop/GDPO/ckp/NAOSD", base="base/sd21")
    with pytest.raises(
        FileNotFoundError, match=r"vae/config\.json is missing.*the folder itself: ckp/GDPOSR$"
    ):
        load_model("Joypop/GDPO", base="base/sd21")
    with pytest.raises(FileNotFoundError, match=r"no model at Joypop/GDPO/\.\./other"):
        load_model("Joypop/GDPO/../other")


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


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_damaged_weights_are_named(part: str, tmp_path: Path) -> None:
    folder = make_miniature(tmp_path / "sd21")
    file = next((folder / part).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=part):
        load_model(folder)
