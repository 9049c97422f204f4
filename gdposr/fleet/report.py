"""The report of an archive: a Parquet file in the output folder with a row for every photo, also a failed one.

During a run the rows are written in parts, so that a killed driver loses only the last seconds. The next run into the folder takes
what the parts and an older report say of the pictures that it skips.
"""

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdposr.fleet.photos import Target
from gdposr.fleet.worker import Result

if TYPE_CHECKING:
    import pyarrow as pa

# Name of the report in the output folder.
REPORT = "gdposr-report.parquet"
# Hidden, so that it is never listed as a folder of photos.
PARTS = ".gdposr-report"
# A part is written after so many seconds, or as soon as it has so many rows.
PART_SECONDS = 10.0
PART_ROWS = 10_000


def columns() -> "pa.Schema":
    """The columns of a report."""
    import pyarrow as pa

    texts = pa.list_(pa.string())
    return pa.schema(
        {
            "source": pa.string(),
            "status": pa.string(),  # as in the plain command's report: ok, skipped, own, failed
            "output": texts,  # the pictures, one for each sample that was kept
            "seed": pa.uint64(),
            "sample": pa.list_(pa.int64()),  # of each output; null: all on a sheet, or not known
            "digest": pa.string(),  # of the bundle that made the pictures; null: not known
            "precision": pa.string(),
            "sha256": texts,  # of each output
            "milliseconds": pa.float64(),
            "notes": texts,
            "error": pa.string(),
            "node": pa.string(),  # Ray's name of it
        }
    )


class Report:
    """Collects rows, and writes one file at the end.

    target: the output folder.
    seed, digest: of the run, like the attribute precision.
    earlier: whether to read reports of earlier runs, for skipped photos.
    """

    def __init__(self, target: Target, seed: int, digest: str, earlier: bool) -> None:
        self._target, self._seed, self._digest = target, seed, digest
        self.precision: str | None = None
        self._rows: list[dict[str, Any]] = []
        self._parts: list[str] = [name for name in target.names_in(PARTS) if name.endswith(".parquet")]
        self._tables: list[pa.Table] = []
        self._known = self._read_earlier() if earlier else {}
        self._flushed = time.monotonic()

    def add(self, result: Result) -> None:
        """Add the row of a photo. A skipped one keeps what an earlier report says of its pictures."""
        outcome = result.outcome
        row: dict[str, Any] = {
            "source": _text(outcome.input),
            "status": outcome.status,
            "output": [_text(output["path"]) for output in outcome.outputs],
            "seed": self._seed,
            "sample": [output["sample"] for output in outcome.outputs],
            "digest": self._digest if outcome.status == "ok" else None,
            "precision": self.precision if outcome.status == "ok" else None,
            "sha256": result.sha256,
            "milliseconds": result.milliseconds,
            "notes": [_text(note) for note in outcome.notes],
            "error": None if outcome.error is None else _text(outcome.error),
            "node": result.node,
        }
        if outcome.status == "skipped" and row["output"]:
            row |= self._known.get(row["output"][0], {})
        self._rows.append(row)
        worked = outcome.status in ("ok", "failed")
        if worked and (len(self._rows) >= PART_ROWS or time.monotonic() - self._flushed >= PART_SECONDS):
            self._flush()

    def close(self) -> str:
        """Write the report, remove the parts, and return the report's name for messages."""
        import pyarrow as pa

        self._take()
        table = pa.concat_tables(self._tables) if self._tables else columns().empty_table()
        self._put(table, REPORT)
        for name in self._parts:
            self._target.remove(f"{PARTS}/{name}")
        self._target.remove_folder(PARTS)
        return self._target.shown(REPORT)

    def _take(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._tables.append(pa.Table.from_pylist(self._rows, columns()))
            self._rows = []

    def _flush(self) -> None:
        """Write the rows since the last part as a new part."""
        self._take()
        name = f"{time.time_ns():020d}.parquet"
        self._put(self._tables[-1], f"{PARTS}/{name}")
        self._parts.append(name)
        self._flushed = time.monotonic()

    def _put(self, table: "pa.Table", name: str) -> None:
        import pyarrow.parquet as pq

        with tempfile.TemporaryDirectory(prefix="gdposr-") as folder:
            file = Path(folder, "report.parquet")
            pq.write_table(table, file)
            self._target.put(file, name)

    def _read_earlier(self) -> dict[str, dict[str, Any]]:
        """Rows of earlier runs by their first output."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        kept = ("digest", "precision", "sha256", "milliseconds", "notes", "node")
        known = {}
        for name in (REPORT, *(f"{PARTS}/{part}" for part in self._parts)):
            try:
                with self._target.opened(name) as stream:
                    table = pq.read_table(stream, columns=["output", *kept])
            except (OSError, pa.ArrowException):  # missing, or not a report
                continue
            for row in table.to_pylist():
                if row["output"] and row["digest"] is not None:
                    known[row["output"][0]] = {name: row[name] for name in kept}
        return known


def _text(name: str) -> str:
    """A name as valid text: invalid bytes become escapes such as \\udcd5, as in the JSON reports."""
    return name.encode("utf-8", "backslashreplace").decode()
