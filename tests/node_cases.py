"""What the tests of the page's modules share: node to run them in, and a photo and a model without a network."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="needs node 20: apt-get install nodejs")

# A model without a network: features are the window, the result is the window times the noise of its first channel.
FAKES = """
const photoOf = (width, height, at) => ({ width, height, close() {}, window({ y0, y1, x0, x1 }) {
  const h = y1 - y0, w = x1 - x0, values = new Float32Array(3 * h * w);
  for (let c = 0; c < 3; c++) for (let y = 0; y < h; y++) for (let x = 0; x < w; x++)
    values[(c * h + y) * w + x] = at(c, Math.min(height - 1, y0 + y), Math.min(width - 1, x0 + x));
  return values;
} });
const modelOf = (manifest, fail = () => null, side = null) => ({ side, label: "fake", calls: [], released: 0,
  async encode(planes, height, width) {
    const error = fail(height, width, this.calls.length); this.calls.push([height, width]);
    if (error) throw error;
    return { planes, height, width };
  },
  async generate({ planes, height, width }, noise) {
    const s = manifest.scale, d = manifest.noise.downscale, out = new Float32Array(3 * height * width * s * s);
    for (let c = 0; c < 3; c++) for (let y = 0; y < height * s; y++) for (let x = 0; x < width * s; x++) {
      const row = Math.floor(y / s), column = Math.floor(x / s);
      const cell = Math.floor(row / d) * (width / d) + Math.floor(column / d);
      out[(c * height * s + y) * width * s + x] = planes[(c * height + row) * width + column] + 0.01 * noise[cell];
    }
    return out;
  },
  release() { this.released++; }, async close() { this.closed = true; },
});
const collect = async (bands) => { let all = []; for await (const { data } of bands) all.push(...data); return all; };
"""


@pytest.fixture(scope="session")
def run_node(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """run_node(code): the JSON that the code prints. It imports modules of the page by "WEB/name.js"."""
    # the folder says that these are modules, which a browser knows without being told
    folder = tmp_path_factory.mktemp("modules")
    for path in (root / "runtime/web").glob("*.js"):
        shutil.copy(path, folder)
    (folder / "package.json").write_text('{"type": "module"}')

    def run(code: str) -> Any:
        file = folder / f"case_{len(list(folder.glob('case_*')))}.js"
        file.write_text(code.replace("WEB/", "./"))
        result = subprocess.run([str(NODE), file], capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run
