"""The files of the web page: the sources in runtime/web, a bundle's graphs, and the service worker with the list of all files.

Nothing is compiled: the sources are the page.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from runtime.bundle.reader import Bundle

# The file that makes the page work offline.
SERVICE_WORKER: Final = "sw.js"
# Folders of ONNX Runtime and the bundle in the page.
ENGINE, MODEL = "ort/", "bundle/"
# Precisions whose graphs a browser can use.
PRECISIONS: Final = ("fp32", "fp16", "int8")
# Bytes of the page without ONNX Runtime and the model.
BUDGET: Final = 150_000
# Media type of a file by its suffix.
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".gz": "application/gzip",  # unpacked by the page, so no Content-Encoding
}
# Places in the service worker that `site_files` fills in: the files' hashes, and a hash of all.
_FILES_LINE, _DIGEST = "const FILES = {};", "/* digest */"


def page_folder() -> Path:
    """The sources of the page inside the installed package."""
    import runtime

    return Path(runtime.__file__).parent / "web"


def site_files(bundle: "Bundle") -> dict[str, bytes]:
    """Every file of the page by its path, relative to the page's address. BundleError if a browser cannot run the bundle."""
    folder = page_folder()
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    files |= {MODEL + name: content for name, content in bundle_files(bundle).items()}
    worker = files.pop(SERVICE_WORKER).decode()
    digests = {path: hashlib.sha256(content).hexdigest()[:16] for path, content in files.items()}
    listed = json.dumps({"./": digests["index.html"], **digests}, indent=1, sort_keys=True)
    digest = hashlib.sha256((listed + worker).encode()).hexdigest()[:16]
    for part in (_FILES_LINE, _DIGEST):
        if worker.count(part) != 1:
            raise AssertionError(f"{SERVICE_WORKER}: expected {part!r} once, got {worker.count(part)} times")
    worker = worker.replace(_FILES_LINE, f"const FILES = {listed};").replace(_DIGEST, digest)
    return files | {SERVICE_WORKER: worker.encode()}


def bundle_files(bundle: "Bundle") -> dict[str, bytes]:
    """The files of a bundle that a browser needs, checked: its manifest, the ONNX graphs and the probe."""
    from runtime.errors import BundleError

    manifest = bundle.manifest
    pairs = [manifest.graphs[name] for name in PRECISIONS if name in manifest.graphs]
    if not pairs:
        raise BundleError(
            f"{bundle.path}: expected ONNX graphs in one of {', '.join(PRECISIONS)}, got {sorted(manifest.graphs)}; "
            "a browser runs no other, so export the bundle with --targets onnx"
        )
    graphs = [graph for pair in pairs for graph in pair.values()]
    if any(graph.data is not None for graph in graphs) or manifest.size.overlap:
        raise BundleError(
            f"{bundle.path}: expected a small model whose weights are in its graphs and whose tiles meet, got a larger kind; "
            "use the command gdposr upscale"
        )
    files = {"manifest.json": bundle.manifest_bytes}
    files |= {graph.file: bundle.graph_bytes(graph) for graph in graphs}
    return files | {file.file: bundle.read(file) for file in (manifest.probe.input, manifest.probe.output)}


def page_bytes(files: dict[str, bytes]) -> int:
    """Bytes of the page without ONNX Runtime and the model."""
    return sum(len(content) for path, content in files.items() if not path.startswith((ENGINE, MODEL)))
