"""A command in two processes that train together, as `accelerate launch` starts them, on the CPU."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TIMEOUT = 240  # seconds


def run_in_two(root: Path, module: str, arguments: Sequence[str]) -> None:
    """`python -m module arguments` as ranks 0 and 1 of 2. AssertionError with what a process printed if one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=root,
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ("0", "1")
    ]
    for process in processes:
        printed, _ = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, printed[-2000:]
