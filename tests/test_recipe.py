"""The recipe of a student's training: settings, presets and what is refused."""

import json
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra `export`")

from export.distill.recipe import PRESETS, TINY, DistillConfig
from training import settings


def test_settings_reach_the_config_and_mistyped_keys_are_refused() -> None:
    config = settings.with_settings(TINY, ["lr=0.001", "student.width=16", "precision=bf16"])
    assert (config.lr, config.student.width, config.precision) == (0.001, 16, "bf16")
    for wrong in ("lrr=1", "student.widht=3", "lr"):
        with pytest.raises(ValueError, match=r"unknown|key=value"):
            settings.with_settings(TINY, [wrong])


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_round_trip(name: str) -> None:
    preset = PRESETS[name]
    assert settings.from_dict(DistillConfig, json.loads(json.dumps(settings.to_dict(preset)))) == preset


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": 0}, {"warmup_steps": 0}, {"discriminator_every": 0}, {"held_out": 0}, {"lr": 0.0}, {"clip": -1.0},
        {"feature": -1.0}, {"final_lr": float("nan")}, {"ema": 1.0}, {"adversary_from": 3.0}, {"feature_layers": (1.0, 1.0)},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_would_fail_later_are_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(wrong))} must be"):
        replace(TINY, **wrong)


def test_shares_beyond_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"drawn_feature must be from 0 to 1, got 1\.5"):
        replace(TINY, drawn_feature=1.5)
