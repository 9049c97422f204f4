"""Counts and times for Prometheus."""

import sys

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from gdposr.server.jobs import JobQueue
from gdposr.server.work import Answer, PhotoRequest

# Upper limits of the histogram's buckets in seconds.
SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
# Media type of the figures.
TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counts of one server, in a registry of its own, so that two servers in one process do not mix them."""

    def __init__(self, queue: JobQueue[PhotoRequest, Answer]) -> None:
        self._registry = CollectorRegistry()
        if sys.platform == "linux":
            ProcessCollector(registry=self._registry)
        self.answers = Counter(
            "gdposr_answers_total",
            "Answers at /v1/upscale by status; 499: the client had left",
            ["status"],
            registry=self._registry,
        )
        self.seconds = Histogram(
            "gdposr_photo_seconds",
            "Seconds from the whole photo to its pictures, the queue included",
            buckets=SECONDS,
            registry=self._registry,
        )
        self.pictures = Counter("gdposr_pictures_total", "Pictures made", registry=self._registry)
        self.pixels = Counter("gdposr_input_pixels_total", "Pixels of photos done", registry=self._registry)
        for name, text, value in (
            ("gdposr_photos_waiting", "Photos in the queue", lambda: queue.waiting),
            ("gdposr_photos_at_work", "Photos being enlarged", lambda: queue.at_work),
        ):
            Gauge(name, text, registry=self._registry).set_function(value)

    def done(self, photo_request: PhotoRequest, answer: Answer, seconds: float) -> None:
        """Count a photo that was enlarged."""
        self.seconds.observe(seconds)
        self.pictures.inc(len(photo_request.order.numbers))
        self.pixels.inc(answer.pixels)

    def text(self) -> bytes:
        """All figures in Prometheus' text format, whose media type is TYPE."""
        return generate_latest(self._registry)
