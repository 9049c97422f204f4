"""A bounded queue of jobs for a few worker threads. Each job has a deadline and can be stopped at any time.

It is independent of HTTP and of pictures: the queue gets the function that does a job.
"""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Generic, TypeVar

# The longest time to wait that a client is told, in seconds.
LONGEST_RETRY: Final = 120
# Weight of the newest job in the mean time of a job.
NEWEST: Final = 0.2

Wanted = TypeVar("Wanted")
Result = TypeVar("Result")


class Stopped(Exception):
    """Raised inside the work on a job that was given up, or whose time is up."""


class Full(Exception):
    """The queue is full. retry_after: seconds until it probably has a free place."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full, try again in {retry_after} s")
        self.retry_after = retry_after


class Closed(Exception):
    """The queue is closed: it takes no more jobs."""


class Job(Generic[Wanted, Result]):
    """One piece of work. wanted: what the work needs to know. deadline: in seconds of time.monotonic."""

    def __init__(self, wanted: Wanted, deadline: float) -> None:
        self.wanted, self.deadline = wanted, deadline
        self.future: Future[Result] | None = None
        self.begun = False  # whether a worker has taken it up in time
        self._stop = threading.Event()

    def stop(self) -> bool:
        """Give the job up. True: it was waiting and will not begin. False: it is done, or ends at its next `check`."""
        self._stop.set()
        return self.future is not None and self.future.cancel()

    def check(self, *_: object) -> None:
        """Stopped if the job was given up or its time is up. It can serve as a progress function of the runtime."""
        if self._stop.is_set():
            raise Stopped("the job was given up")
        if time.monotonic() > self.deadline:
            raise Stopped("the job's time is up")


class JobQueue(Generic[Wanted, Result]):
    """Jobs in the order in which they came.

    work: called with a job in a worker thread. It should call `job.check` often.
    workers: jobs at work at once.
    waiting: jobs in the queue besides those at work.
    """

    def __init__(self, work: Callable[[Job[Wanted, Result]], Result], workers: int, waiting: int) -> None:
        self._work, self._workers, self._places = work, workers, workers + waiting
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="upscale")
        self._lock = threading.RLock()
        self._jobs: set[Job[Wanted, Result]] = set()  # waiting or at work
        self._at_work, self._closed = 0, False
        self._mean = 1.0  # seconds that a job takes; the newest ones count most

    @property
    def at_work(self) -> int:
        return self._at_work

    @property
    def waiting(self) -> int:
        with self._lock:
            return len(self._jobs) - self._at_work

    @property
    def closed(self) -> bool:
        return self._closed

    def admit(self) -> None:
        """Full or Closed if a job would be refused now."""
        with self._lock:
            if self._closed:
                raise Closed
            if len(self._jobs) >= self._places:
                raise Full(self.retry_after())

    def submit(self, job: Job[Wanted, Result]) -> "Future[Result]":
        """Queue a job. Full or Closed if it is refused. The future is cancelled if the job is stopped or refused while it waits."""
        with self._lock:
            self.admit()
            self._jobs.add(job)
            job.future = self._pool.submit(self._run, job)
        job.future.add_done_callback(lambda _: self._leave(job))
        return job.future

    def retry_after(self) -> int:
        """Seconds until a place is probably free: the time of all jobs, divided among the workers."""
        with self._lock:
            seconds = self._mean * max(1, len(self._jobs)) / self._workers
        return min(LONGEST_RETRY, max(1, math.ceil(seconds)))

    def close(self) -> None:
        """Refuse new jobs and cancel waiting ones. Jobs at work go on."""
        with self._lock:
            self._closed = True
            jobs = list(self._jobs)
        for job in jobs:
            if job.future is not None:
                job.future.cancel()

    def abort(self) -> None:
        """`close`, stop the jobs at work too, and wait until they have ended."""
        self.close()
        with self._lock:
            jobs = list(self._jobs)
        for job in jobs:
            job.stop()
        self._pool.shutdown(wait=True)

    def _run(self, job: Job[Wanted, Result]) -> Result:
        begin = time.monotonic()
        with self._lock:
            self._at_work += 1
        try:
            job.check()  # its time may have run out in the queue
            job.begun = True
            return self._work(job)
        finally:
            with self._lock:
                self._at_work -= 1
                # under the same lock as the line above, so that `waiting` is right at any moment
                self._jobs.discard(job)
                self._mean += NEWEST * (time.monotonic() - begin - self._mean)

    def _leave(self, job: Job[Wanted, Result]) -> None:
        with self._lock:
            self._jobs.discard(job)
