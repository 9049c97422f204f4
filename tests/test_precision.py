"""Which number format a run multiplies in, where its settings leave that to the machine."""

from types import MappingProxyType

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
pytest.importorskip("diffusers", reason="needs the extra `train`")

from training.loop import precision  # noqa: E402  (after importorskip)
from training.stages.presets import PRESETS  # noqa: E402


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "no"),
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"architecture": "aarch64", "bf16": True}, "no"),
    ],
)
def test_auto_takes_bf16_where_the_cpu_has_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool | str], expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(capabilities), raising=False)
    assert precision.resolved("auto", "cpu", "no") == expected


def test_an_older_torch_that_cannot_tell_gets_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert precision.resolved("auto", "cpu", "fp32") == "fp32"


def test_cuda_is_asked_without_emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pascal and Turing run bf16 by emulation; torch says so only when asked."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert precision.resolved("auto", "cuda", "no") == "no"


def test_what_was_asked_for_stays() -> None:
    assert [precision.resolved(p, "mps", "no") for p in ("no", "fp16", "bf16", "auto")] == [
        "no",
        "fp16",
        "bf16",
        "no",
    ]


def test_the_pocket_presets_leave_it_to_the_machine() -> None:
    """GDPO's stays full: bf16 rounds the preference term away."""
    assert {stage: presets["pocket"].precision for stage, presets in PRESETS.items()} == {
        "pretrain": "auto",
        "naosd": "auto",
        "gdpo": "no",
    }
