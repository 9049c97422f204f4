"""Settings: JSON round trip, key=value changes, mistyped keys and values."""

import json
from dataclasses import dataclass, field

import pytest

from training.settings import differences, from_dict, to_dict, with_settings


@dataclass(frozen=True)
class Inner:
    width: int = 8
    blocks: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Outer:
    lr: float = 1e-3
    steps: int = 10
    name: str = "a"
    on: bool = True
    metrics: tuple[str, ...] = ("psnr",)
    inner: Inner = field(default_factory=Inner)


def test_settings_survive_json() -> None:
    settings = Outer(lr=0.5, metrics=("psnr", "niqe"), inner=Inner(3, (4, 5)))
    assert from_dict(Outer, json.loads(json.dumps(to_dict(settings)))) == settings


def test_changes_keep_the_kind_of_a_setting() -> None:
    changed = with_settings(
        Outer(),
        ["lr=1", "name=12b", "on=false", 'metrics=["ssim"]', "inner.width=64", "inner.blocks=[3]"],
    )
    assert changed == Outer(1.0, 10, "12b", False, ("ssim",), Inner(64, (3,)))
    assert isinstance(changed.lr, float)
    assert with_settings(Outer(), ["metrics=psnr,niqe"]).metrics == ("psnr", "niqe")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lrr=1", "unknown setting lrr; known: lr, steps"),
        ("inner.widht=1", "unknown setting widht; known: width"),
        ("outer.lr=1", "unknown setting outer.lr"),
        ("lr", "key=value"),
        ("lr=fast", "lr expects a number, got 'fast'"),
        ("steps=1.5", "steps expects a whole number, got 1.5"),
        ("steps=true", "steps expects a whole number, got True"),
        ("on=1", "on expects true or false, got 1"),
        ("metrics=3", "metrics expects a list, got 3"),
    ],
)
def test_wrong_changes_are_refused(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"setting|expects") as caught:
        with_settings(Outer(), [change])
    assert message in str(caught.value)


def test_differences_name_the_place() -> None:
    assert differences(to_dict(Outer()), to_dict(Outer(inner=Inner(9)))) == ["inner.width: 8 -> 9"]
    assert differences(to_dict(Outer()), json.loads(json.dumps(to_dict(Outer())))) == []
