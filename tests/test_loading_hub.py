"""Models of the hub: a folder of a repository, runs that stand on it, a name without network, and paths that are not looked up."""

import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
for package in ("diffusers", "peft", "transformers"):
    pytest.importorskip(package, reason="needs the extra `train`")

import loading_cases  # noqa: E402  (after importorskip)
from loading_cases import WEIGHTS, adapted, run, save_run  # noqa: E402

from export.load import load_source  # noqa: E402
from training.model.loading import load_model, read_model_file  # noqa: E402

sd21, public = loading_cases.sd21, loading_cases.public  # fixtures


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
