"""Programs that coremltools makes of torch modules, evaluated and compared with the modules themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
ct = pytest.importorskip("coremltools", reason="needs the extra `coreml`")

import torch.nn.functional as F  # noqa: E402  (after importorskip)
from torch import Tensor, nn  # noqa: E402

from export.mil.evaluate import Evaluator  # noqa: E402
from export.mil.package.program import read_package  # noqa: E402
from export.source import psnr  # noqa: E402


class Layers(nn.Module):
    """What convolutional networks are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(12, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(16, 16, 4, stride=2, padding=1)
        self.batch, self.instance = nn.BatchNorm2d(16), nn.InstanceNorm2d(16, affine=True)
        self.prelu = nn.PReLU(16)
        self.last = nn.Conv2d(32, 12, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(F.pixel_unshuffle(image, 2))
        x = self.prelu(self.batch(x)) + 0.1 * F.hardtanh(x) - F.elu(x) * torch.sigmoid(x)
        small = F.softplus(self.instance(self.down(F.pad(x, (1, 1, 1, 1), mode="reflect")[:, :, 1:-1, 1:-1])))
        pooled = F.max_pool2d(x, 2, 2) + F.avg_pool2d(x, 3, 2, 1) + small.clamp(-1, 2)
        wide = self.up(pooled) + F.interpolate(pooled, scale_factor=2.0, mode="nearest")
        smooth = F.interpolate(pooled, scale_factor=2.0, mode="bilinear", align_corners=False)
        joined = torch.cat([F.leaky_relu(wide, 0.2), smooth.mul(2).tanh()], dim=1)
        left, right = F.pixel_shuffle(self.last(joined), 2).chunk(2, dim=3)
        return torch.cat([right.flip(3), left], dim=3).square().add(0.1).sqrt()


class Attention(nn.Module):
    """A residual block and a transformer block as Stable Diffusion's U-Net has them, with its time embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(4, 16, eps=1e-6), nn.Conv2d(16, 16, 3, padding=1)
        self.time = nn.Linear(16, 16)
        self.layer = nn.LayerNorm(16)
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16, bias=False) for _ in range(4))
        self.gate = nn.Linear(16, 64)
        self.back = nn.Linear(32, 16)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * torch.exp(-0.5 * torch.arange(8, dtype=torch.float32))
        embedding = F.silu(torch.cat([angles.cos(), angles.sin()], dim=-1))
        x = x + self.conv(F.silu(self.norm(x))) + self.time(embedding)[:, :, None, None]
        n, c, h, w = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(n, h * w, c)
        normal = self.layer(tokens)
        q, k, v = (
            f(normal).reshape(n, h * w, 2, 8).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, h * w, c)
        tokens = tokens + self.out(attended)
        first, second = self.gate(self.layer(tokens)).chunk(2, dim=-1)
        tokens = tokens + self.back(first * F.gelu(second))
        return tokens.reshape(n, h, w, c).permute(0, 3, 1, 2)


def evaluate(module: Any, inputs: tuple[Tensor, ...], precision: str, target: str, path: Path) -> np.ndarray:
    """The package's result for the module's inputs."""
    exported = torch.export.export(module, inputs).run_decompositions({})
    model = ct.convert(
        exported,
        convert_to="mlprogram",
        minimum_deployment_target=getattr(ct.target, target),
        compute_precision=getattr(ct.precision, precision),
        skip_model_load=True,
    )
    model.save(str(path))
    program = read_package(path)
    feeds = {f.name: i.numpy() for f, i in zip(program.inputs, inputs, strict=True)}
    (found,) = Evaluator(program)(feeds).values()
    return found


CASES = {
    "layers": (Layers, ((1, 3, 16, 24),), "iOS17"),
    "attention": (Attention, ((1, 16, 6, 8), (1,)), "iOS17"),
    "attention, iOS 18": (Attention, ((1, 16, 6, 8), (1,)), "iOS18"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("precision", "floor"), [("FLOAT32", 110.0), ("FLOAT16", 50.0)])
def test_converted_module_agrees_with_torch(tmp_path: Path, case: str, precision: str, floor: float) -> None:
    kind, shapes, target = CASES[case]
    torch.manual_seed(0)
    module = kind().eval()
    inputs = tuple(torch.randn(shape) for shape in shapes)
    with torch.no_grad():
        expected = module(*inputs).numpy()
    came = evaluate(module, inputs, precision, target, tmp_path / "module.mlpackage")
    peak = np.abs(expected).max()
    figures = (
        f"largest difference {np.abs(came - expected).max():.2g}, mean {np.abs(came - expected).mean():.2g}"
    )
    assert came.shape == expected.shape
    assert psnr(came / peak, expected / peak) >= floor, figures
    if precision == "FLOAT32":
        np.testing.assert_allclose(came, expected, rtol=1e-5, atol=1e-5)
