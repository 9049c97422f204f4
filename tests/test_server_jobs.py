"""The queue of the server for apps: bounds, order, ends. Needs no package of the extra `server`."""

import threading
import time
from collections.abc import Callable

import pytest

from gdposr.server.jobs import LONGEST_RETRY, Closed, Full, Job, JobQueue, Stopped

LATER = 60.0  # seconds no test takes


def job(name: str = "a", seconds: float = LATER) -> Job[str, str]:
    return Job(name, time.monotonic() + seconds)


class Gate:
    """Work that waits until it is let through, and says what has begun."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)

    def __call__(self, one: Job[str, str]) -> str:
        self.begun.append(one.wanted)
        self.entered.release()
        while not self.open.wait(0.01):
            one.check()
        return one.wanted.upper()

    def wait(self, times: int = 1) -> None:
        for _ in range(times):
            assert self.entered.acquire(timeout=10)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def make(gate: Gate):
    made = []

    def queue(workers: int = 1, waiting: int = 2, work: Callable | None = None) -> JobQueue[str, str]:
        made.append(JobQueue(work or gate, workers, waiting))
        return made[-1]

    yield queue
    for each in made:
        each.abort()


def test_jobs_are_done_in_their_order_by_one_worker(make, gate: Gate) -> None:
    queue = make(waiting=3)
    futures = [queue.submit(job(name)) for name in "abcd"]
    gate.wait()
    assert (gate.begun, queue.at_work, queue.waiting) == (["a"], 1, 3)
    gate.open.set()
    assert [future.result(10) for future in futures] == list("ABCD")
    assert gate.begun == list("abcd")
    assert (queue.at_work, queue.waiting) == (0, 0)


def test_a_full_queue_refuses_and_takes_again_when_a_place_is_free(make, gate: Gate) -> None:
    queue = make(workers=2, waiting=1)
    futures = [queue.submit(job(name)) for name in "abc"]
    gate.wait(2)
    with pytest.raises(Full) as refused:
        queue.submit(job("d"))
    assert 1 <= refused.value.retry_after <= LONGEST_RETRY
    with pytest.raises(Full):
        queue.admit()
    gate.open.set()
    assert [future.result(10) for future in futures] == list("ABC")
    queue.admit()
    assert queue.submit(job("e")).result(10) == "E"
    assert "d" not in gate.begun


def test_a_job_given_up_while_it_waits_frees_its_place_and_never_begins(make, gate: Gate) -> None:
    queue = make(waiting=1)
    queue.submit(job("a"))
    gate.wait()
    second = job("b")
    future = queue.submit(second)
    assert second.stop()
    assert future.cancelled()
    assert queue.waiting == 0
    third = queue.submit(job("c"))
    gate.open.set()
    assert third.result(10) == "C"
    assert gate.begun == ["a", "c"]


def test_a_job_given_up_at_work_ends_at_its_next_check(make, gate: Gate) -> None:
    queue = make()
    first = job("a")
    future = queue.submit(first)
    gate.wait()
    assert not first.stop()
    with pytest.raises(Stopped):
        future.result(10)
    assert queue.at_work == 0


def test_time_runs_out_at_work_and_in_the_queue(make, gate: Gate) -> None:
    queue = make()
    slow = queue.submit(job("a", seconds=0.5))
    late = queue.submit(job("b", seconds=0.0))
    for future in (slow, late):
        with pytest.raises(Stopped):
            future.result(10)
    assert gate.begun == ["a"]


def test_an_error_is_the_job_s_own_and_the_worker_goes_on(make) -> None:
    def work(one: Job[str, str]) -> str:
        if one.wanted == "bad":
            raise ValueError("broken")
        return one.wanted

    queue = make(work=work, waiting=9)
    futures = [queue.submit(job(name)) for name in ("bad", "good")]
    with pytest.raises(ValueError, match="broken"):
        futures[0].result(10)
    assert futures[1].result(10) == "good"
    assert (queue.at_work, queue.waiting) == (0, 0)


def test_closing_lets_work_end_and_refuses_the_rest(make, gate: Gate) -> None:
    queue = make()
    first, second = (queue.submit(job(name)) for name in "ab")
    gate.wait()
    queue.close()
    assert second.cancelled()
    with pytest.raises(Closed):
        queue.submit(job("c"))
    gate.open.set()
    assert first.result(10) == "A"


def test_abort_ends_work_too(make, gate: Gate) -> None:
    queue = make()
    first, second = (queue.submit(job(name)) for name in "ab")
    gate.wait()
    queue.abort()
    assert second.cancelled()
    with pytest.raises(Stopped):
        first.result(0)


def test_the_time_to_stay_away_follows_the_queue_and_the_work(make, gate: Gate) -> None:
    queue = make(waiting=9)
    assert queue.retry_after() == 1
    for name in "abcde":
        queue.submit(job(name))
    assert queue.retry_after() == 5  # a second each, before any was measured
    two = make(workers=2, waiting=9)
    for name in "abcde":
        two.submit(job(name))
    assert two.retry_after() == 3


def test_many_threads_at_once_lose_no_job_and_no_place(make) -> None:
    done: list[str] = []
    queue = make(workers=3, waiting=5, work=lambda one: (done.append(one.wanted), one.wanted)[1])
    taken: list[str] = []

    def client(number: int) -> None:
        for k in range(50):
            name = f"{number}-{k}"
            try:
                future = queue.submit(job(name))
            except Full:
                continue
            if future.result(10) == name:
                taken.append(name)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(taken) == sorted(done)
    assert len(set(done)) == len(done) > 0
    assert (queue.at_work, queue.waiting) == (0, 0)
