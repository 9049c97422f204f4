"""Other models for a browser: UpscalerJS from npm, and realesr-general-x4v3 as an ONNX graph."""

import io
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Final

# Models of UpscalerJS, all four times: their packages, global names and scripts.
UPSCALERS: Final = (
    {"name": "esrgan-slim", "model": "ESRGANSlim4x", "script": "slim.min.js"},
    {"name": "esrgan-medium", "model": "ESRGANMedium4x", "script": "medium.min.js"},
)
# Packages of npm that are timed, each in one version.
VERSIONS: Final = (
    "upscaler@1.0.0", "@upscalerjs/esrgan-slim@1.0.0", "@upscalerjs/esrgan-medium@1.0.0", "@tensorflow/tfjs@4.11.0",
    "@tensorflow/tfjs-backend-wasm@4.11.0",
)  # fmt: skip


def npm_files(folder: Path) -> dict[str, bytes]:
    """The files of UpscalerJS by the names that tools/web/bench.js gives them. Fetched by npm into the folder at the first call."""
    modules = folder / "node_modules"
    if not (modules / "@tensorflow/tfjs-backend-wasm").is_dir():
        npm = shutil.which("npm")
        if npm is None:
            raise RuntimeError(
                "expected npm, got none: make setup-web, or leave UpscalerJS out by --without-npm"
            )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text("{}\n")
        subprocess.run(
            [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", *VERSIONS], cwd=folder, check=True
        )
    wasm = modules / "@tensorflow/tfjs-backend-wasm/dist"
    places = {
        "tf.min.js": modules / "@tensorflow/tfjs/dist/tf.min.js",
        "tf-backend-wasm.min.js": wasm / "tf-backend-wasm.min.js",
        "upscaler.min.js": modules / "upscaler/dist/browser/umd/upscaler.min.js",
    }
    places |= {path.name: path for path in wasm.glob("*.wasm")}
    for upscaler in UPSCALERS:
        package = modules / "@upscalerjs" / upscaler["name"]
        places[upscaler["script"]] = package / f"dist/umd/models/{upscaler['name']}/src/x4/index.min.js"
        places |= {f"{upscaler['model']}/{path.name}": path for path in (package / "models/x4").iterdir()}
    return {name: path.read_bytes() for name, path in places.items()}


def peer_onnx(param: Path, side: int) -> bytes:
    """realesr-general-x4v3 as an ONNX graph in fp32 from its ncnn files, for pictures of side x side."""
    import torch

    from export.prior.network import Prior

    content = io.BytesIO()
    with warnings.catch_warnings():
        # the network checks its input's shape, which is fixed here
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.onnx.export(
            Prior(param),
            (torch.zeros(1, 3, side, side),),
            content,
            input_names=["image"],
            output_names=["sr"],
            dynamo=False,
        )
    return content.getvalue()
