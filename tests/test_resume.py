"""A run of training goes on where it stopped: the same result, the same settings, states that are whole or refused."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("accelerate", reason="needs the extra `train`")

from toy_stage import SETTINGS, Toy, make, state  # noqa: E402  (after importorskip)

from training.checkpoint import load_state, save_state  # noqa: E402
from training.loop.budget import Budget  # noqa: E402
from training.loop.resume import check, keep_step  # noqa: E402
from training.loop.stage import RunSettings  # noqa: E402
from training.settings import to_dict  # noqa: E402


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def test_resumed_run_equals_an_uninterrupted_one(photos: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, accumulate=2, ema=0.9)
    make(photos, tmp_path / "whole", Budget(steps=6), settings).run()
    stopped = Budget(steps=6)
    stopped.progress = lambda step: 1.0 if step == 2 else step / 6  # type: ignore[method-assign]
    make(photos, tmp_path / "parts", stopped, settings).run()
    stage = Toy(settings)
    torch.nn.init.zeros_(stage.net.weight)  # whatever it begins with comes from the state
    make(photos, tmp_path / "parts", Budget(steps=6), settings, stage).run(resume=True)
    assert_same(state(tmp_path / "whole"), state(tmp_path / "parts"))


def test_a_step_keeps_its_pairs_when_batch_and_processes_change(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped = Budget(steps=4)
    stopped.progress = lambda step: 1.0 if step == 2 else step / 4  # type: ignore[method-assign]
    large = replace(SETTINGS, batch=4)
    make(photos, tmp_path / "parts", stopped, large).run()
    folder = tmp_path / "parts" / "state"
    caplog.set_level("INFO", logger="train")
    assert keep_step(large, folder, 1) == large
    assert keep_step(large, tmp_path / "none", 3) == large
    assert keep_step(replace(large, batch=1), folder, 2) == replace(large, batch=1, accumulate=2)
    assert "accumulate=2, so that a step still trains on 4 pairs" in caplog.text
    with pytest.raises(ValueError, match="trains on 4 pairs a step, got 3 processes with batch=1"):
        keep_step(replace(large, batch=1), folder, 3)
    with pytest.raises(
        ValueError, match=r"settings\.accumulate: 1 -> 2"
    ):  # another step, not another way to it
        make(photos, tmp_path / "parts", Budget(steps=4), replace(large, accumulate=2)).run(resume=True)
    small = keep_step(replace(large, batch=2), folder, 1)
    make(photos, tmp_path / "parts", Budget(steps=4), small).run(resume=True)
    make(photos, tmp_path / "whole", Budget(steps=4), large).run()
    a, b = state(tmp_path / "whole"), state(tmp_path / "parts")
    for key in a:
        torch.testing.assert_close(a[key], b[key], atol=1e-5, rtol=1e-4)


def test_a_run_from_before_a_setting_goes_on_with_what_auto_came_to(tmp_path: Path) -> None:
    now = {"processes": 1, "settings": to_dict(replace(SETTINGS, degrade="loader", tf32=True))}
    old = {name: value for name, value in now["settings"].items() if name not in ("degrade", "tf32")}
    check(tmp_path, {"processes": 1, "settings": old}, now, RunSettings())
    with pytest.raises(ValueError, match=r"settings\.tf32: True -> False"):
        check(tmp_path, {"processes": 1, "settings": old}, {**now, "settings": now["settings"] | {"tf32": False}},
              RunSettings())  # fmt: skip


def test_begun_run_is_neither_overwritten_nor_resumed_with_other_settings(
    photos: Path, tmp_path: Path
) -> None:
    make(photos, tmp_path / "run", Budget(steps=1)).run()
    with pytest.raises(FileExistsError, match="--resume"):
        make(photos, tmp_path / "run", Budget(steps=1)).run()
    with pytest.raises(ValueError, match=r"settings\.lr: 0\.01 -> 0\.5"):
        make(photos, tmp_path / "run", Budget(steps=2), replace(SETTINGS, lr=0.5)).run(resume=True)
    with pytest.raises(FileNotFoundError, match="without --resume"):
        make(photos, tmp_path / "none", Budget(steps=1)).run(resume=True)


def test_run_from_before_a_setting_existed_goes_on_with_its_default(photos: Path, tmp_path: Path) -> None:
    make(photos, tmp_path / "run", Budget(steps=1)).run()
    path = tmp_path / "run" / "state" / "state.json"
    values = json.loads(path.read_text())
    del values["best"], values["about"]["settings"]["validate_steps"]
    path.write_text(json.dumps(values))
    result = make(photos, tmp_path / "run", Budget(steps=2)).run(resume=True)
    assert (result["finished"], result["step"]) == (True, 2)
    path.write_text(json.dumps(values))
    changed = make(photos, tmp_path / "run", Budget(steps=3), replace(SETTINGS, validate_steps=5))
    with pytest.raises(ValueError, match=r"settings\.validate_steps: 0 -> 5"):
        changed.run(resume=True)


def test_state_of_another_size_is_refused(photos: Path, tmp_path: Path) -> None:
    make(photos, tmp_path / "run", Budget(steps=1)).run()
    stage = Toy()
    stage.net = torch.nn.Conv2d(3, 3, 5, padding=2)
    with pytest.raises(ValueError, match=r"net\.weight has shape \(3, 3, 3, 3\), expected \(3, 3, 5, 5\)"):
        make(photos, tmp_path / "run", Budget(steps=2), stage=stage).run(resume=True)


def test_interrupt_saves_and_leaves_no_model(photos: Path, tmp_path: Path) -> None:
    def press(step: int, values: dict[str, float]) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    result = make(photos, tmp_path / "run", Budget(steps=50), on_step=press).run()
    assert (result["finished"], result["step"]) == (False, 3)
    assert not (tmp_path / "run" / "model").exists()
    resumed = make(photos, tmp_path / "run", Budget(steps=5)).run(resume=True)
    assert (resumed["finished"], resumed["step"]) == (True, 5)


FULL_DISK = """
import resource, signal, sys
import torch
from pathlib import Path
from training.checkpoint import save_state
folder = Path(sys.argv[1])
save_state(folder, {"net": torch.nn.Linear(8, 8)}, {}, {"step": 1})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    save_state(folder, {"net": torch.nn.Linear(80, 80)}, {}, {"step": 2})
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs limits on the size of files")
def test_full_disk_leaves_the_earlier_state(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder)], cwd=root, capture_output=True, text=True, check=True
    )
    assert "the earlier state is unchanged" in done.stdout
    assert "--resume" in done.stdout
    values = load_state(folder, {"net": torch.nn.Linear(8, 8)}, {})
    assert values["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_damaged_state_is_named(photos: Path, tmp_path: Path) -> None:
    make(photos, tmp_path / "run", Budget(steps=1)).run()
    file = tmp_path / "run" / "state" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"state\.safetensors is damaged or cut off"):
        make(photos, tmp_path / "run", Budget(steps=2)).run(resume=True)


def test_interrupted_swap_loses_neither_state(tmp_path: Path) -> None:
    """Killed between the two renames: .old is the only state there is, and the next save must not begin by deleting it."""
    net = torch.nn.Linear(2, 2)
    save_state(tmp_path / "s", {"net": net}, {}, {"step": 1})
    (tmp_path / "s").rename(tmp_path / "s.old")
    assert load_state(tmp_path / "s", {"net": net}, {})["step"] == 1
    save_state(tmp_path / "s", {"net": net}, {}, {"step": 2})
    assert load_state(tmp_path / "s", {"net": net}, {})["step"] == 2


def test_states_hold_no_pickle(tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    save_state(tmp_path / "s", {"net": net}, {"net": optimizer}, {"step": 1})
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["state.json", "state.safetensors"]
