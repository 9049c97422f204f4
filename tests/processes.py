"""Work in several processes that train together, as `accelerate launch` starts them, by gloo on the CPU."""

import gc
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT = 240  # seconds


def run_in(count: int, work: Callable[[], Any], folder: Path) -> None:
    """Call `work` as ranks 0 to count - 1. AssertionError with what a process printed if one raises or gives an exit code.

    The processes are forked, so that they need not import torch again. folder: for what they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    printed = [folder / f"rank{rank}.txt" for rank in range(count)]
    ranks = [
        fork.Process(target=_join, args=(rank, count, port, work, file)) for rank, file in enumerate(printed)
    ]
    for rank in ranks:
        rank.start()
    for rank, file in zip(ranks, printed, strict=True):
        rank.join(TIMEOUT)
        if rank.exitcode != 0:
            for other in ranks:
                other.kill()
        assert rank.exitcode == 0, f"exit code {rank.exitcode}: {file.read_text()[-2000:]}"


def _join(rank: int, count: int, port: int, work: Callable[[], Any], file: Path) -> None:
    with file.open("w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    # The parent's garbage may hold sessions of ONNX Runtime, and to destroy one waits for its threads, which a fork has not.
    gc.freeze()
    code = 1
    try:
        import torch
        from accelerate.state import AcceleratorState

        torch.set_num_threads(1)  # a fork has none of its parent's threads
        AcceleratorState._reset_state(reset_partial_state=True)
        of_all = {
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        of_one = {"RANK": rank, "LOCAL_RANK": rank, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": 1}
        os.environ.update({name: str(value) for name, value in (of_all | of_one).items()})
        found = work()
        code = found if isinstance(found, int) else 0
    except BaseException:
        file.write_text(file.read_text() + traceback.format_exc())
    finally:
        os._exit(code)  # without what the parent does at its end
