"""Work on a Ray cluster: a pool of Ray Data's workers, and further rounds for photos that failed because of a node or a dead worker.

Ray Data hands out the rows, holds back those that no worker can take yet, restarts dead workers and repeats their rows. A photo that
kills its worker would be repeated without end, so repeats are limited, and later rounds try the lost photos one at a time.
"""

import logging
import math
import os
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gdposr.batch.task import Outcome
from gdposr.console import UsageError, one_line
from gdposr.fleet.photos import ArchivePhoto
from gdposr.fleet.store import is_address
from gdposr.fleet.worker import Result, Settings, Worker, facts_of

# A row costs Ray about the time of a small thumbnail, so rows go out in blocks of at most so many.
MOST_ROWS = 16
# Bytes of the photos in one block: some seconds of work.
MOST_BYTES = 4 << 20
# Blocks of a run. The driver holds each in memory.
MOST_BLOCKS = 50_000
# How often a round repeats a block after its worker died.
REPEATS = 2
# Passes over the photos: after the first, those that failed with their worker or node are tried again.
ROUNDS = 3
# Photos that a worker has at once if they come from stores: one is computed while another is copied.
OVERLAPPED = 2


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """A connection to Ray. address: HOST:PORT, auto, local, or "" for the one that RAY_ADDRESS names, else this machine alone.

    UsageError if there is none.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports
    # Hide Ray Data's internal messages.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    address = address or os.environ.get("RAY_ADDRESS") or "local"
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **own)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise UsageError(
            f"--ray {address}: expected a Ray cluster that can be reached, got: {one_line(error)}; start one with "
            "`ray start --head`, or leave the address out to use this machine alone"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def loaded(settings: Settings) -> tuple[dict[str, Any], dict[str, float]]:
    """What a node loads (see `facts_of`), and the resources of the cluster that each worker takes.

    With --device auto a worker takes a GPU if the cluster has one and the model runs there. UsageError, BundleError or DeviceError if
    no worker could start.
    """
    import ray

    gpus = ray.cluster_resources().get("GPU", 0) >= 1
    takes: dict[str, float] = {"num_cpus": settings.threads}
    if settings.max_memory is not None:
        takes["memory"] = settings.max_memory
    if settings.device in ("cuda", "auto") and gpus:
        takes["num_gpus"] = 1
    elif settings.device == "cuda":
        raise UsageError("--device cuda: expected a GPU in the Ray cluster, got none; use --device cpu")
    if not _places(takes):
        raise UsageError(
            f"expected a node with {_told(takes)} for each worker, got none in the Ray cluster; "
            "ask for less by --threads or --max-memory"
        )
    try:
        facts = ray.get(ray.remote(max_retries=1, **takes)(facts_of).remote(settings))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    if facts["device"] != "cuda":
        takes.pop("num_gpus", None)
    return facts, takes


def enlarged(
    photos: Sequence[ArchivePhoto], settings: Settings, takes: dict[str, float]
) -> Generator[Result, None, None]:
    """The result of every photo, as soon as it is done. Closing the iterator ends the work."""
    left = {photo.number: photo for photo in photos}
    bad_nodes: set[str] = set()
    faults: dict[int, Result] = {}
    for turn in range(ROUNDS):
        if turn and not _places(takes, bad_nodes):
            break  # every node has failed
        for result in _round(list(left.values()), settings, takes, bad_nodes, alone=turn > 0):
            if result.node_fault and result.node is not None:
                faults[result.number] = result
            else:
                faults.pop(result.number, None)
                del left[result.number]
                yield result
        if not left:
            return
        bad_nodes |= {result.node for result in faults.values() if result.node is not None}
    for photo in left.values():
        outcome = Outcome(photo.source, "failed")
        outcome.error = (
            f"{photo.source}: expected a worker to finish it, got workers that died at it {ROUNDS * (REPEATS + 1)} times, as when "
            "memory runs out: give each worker more by --max-memory, or lower --max-pixels"
        )
        yield faults.get(photo.number) or Result(photo.number, outcome, 0.0)


def _round(
    photos: Sequence[ArchivePhoto], settings: Settings, takes: dict[str, float], avoid: set[str], alone: bool
) -> Iterator[Result]:
    """Results of one pass of Ray Data over the photos. Photos that killed their worker are missing.

    photos: to enlarge.
    settings: of every worker.
    takes: resources that Ray reserves for a worker.
    avoid: nodes that get no photo.
    alone: whether each photo is a block of its own, so that no other is lost with it.
    """
    import ray.data

    places = _places(takes, avoid)
    blocks = len(photos) if alone else _blocks(photos, places)
    stores = any(is_address(place) for place in (settings.out, *(photo.address for photo in photos)))
    pool = ray.data.ActorPoolStrategy(
        min_size=1,
        initial_size=max(1, min(places, blocks)),
        max_concurrent_calls_per_actor=OVERLAPPED if stores else 1,
        enable_true_multi_threading=stores,
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # see `enlarged`
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    rows = [{"photo": photo.packed()} for photo in photos]
    with warnings.catch_warnings():  # Ray has no other way to pass max_task_retries yet
        warnings.simplefilter("ignore", DeprecationWarning)
        results = ray.data.from_items(rows, override_num_blocks=blocks).map(
            Worker,
            fn_constructor_args=(settings,),
            compute=pool,
            label_selector={"ray.io/node-id": f"!in({','.join(sorted(avoid))})"} if avoid else None,
            max_task_retries=REPEATS,
            **takes,
        )
    for row in results.iter_rows():
        yield Result.unpacked(row["result"])


def _blocks(photos: Sequence[ArchivePhoto], places: int) -> int:
    """The number of blocks: each has a few seconds of work, and each worker gets several."""
    known = [photo.size for photo in photos if photo.size is not None]
    size = max(1, sum(known) // len(known)) if known else 1
    rows = max(1, min(MOST_ROWS, MOST_BYTES // size, len(photos) // (4 * max(1, places))))
    return math.ceil(len(photos) / max(rows, len(photos) / MOST_BLOCKS))


def _places(takes: dict[str, float], avoid: set[str] | None = None) -> int:
    """How many workers the living nodes have room for."""
    import ray

    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in (avoid or ())]
    return sum(
        min(int(node["Resources"].get(names[name], 0) // amount) for name, amount in takes.items())
        for node in nodes
    )


def _told(takes: dict[str, float]) -> str:
    words = {"num_cpus": "{:g} CPUs", "num_gpus": "{:g} GPU", "memory": "{:g} bytes of memory"}
    return ", ".join(words[name].format(amount) for name, amount in takes.items())
