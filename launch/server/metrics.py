"""Numbers for Prometheus: what the server counts, and what the central scheduler has counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from longtake.launch.central import Central
    from longtake.launch.cluster_view import Figures

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0)


class Metrics:
    """All numbers of one server, which has a registry of its own."""

    def __init__(self, central: Central) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(Scheduler(central))
        self._requests = Counter(
            "longtake_http_requests",
            "Requests that were answered.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "longtake_http_request_seconds",
            "Time until the first byte of an answer.",
            ("route",),
            buckets=BUCKETS,
            registry=self._registry,
        )
        self.open = Gauge(
            "longtake_http_open_requests",
            "Requests and sessions that are being answered.",
            registry=self._registry,
        )

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request; `seconds` until its first byte."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self._registry)


class Scheduler(Collector):
    """Asks the central scheduler whenever Prometheus asks."""

    def __init__(self, central: Central) -> None:
        self._central = central

    def collect(self) -> Iterator[Metric]:
        """All that it can tell."""
        yield from self._cluster()
        figures = self._central.figures()
        yield _counter("longtake_video_seconds", "Seconds of video made.", figures.video_seconds)
        yield _counter("longtake_busy_seconds", "Seconds of groups at work.", figures.busy_seconds)
        made = figures.video_seconds
        pace = figures.busy_seconds / made if made else 0.0
        yield GaugeMetricFamily(
            "longtake_seconds_per_video_second",
            "Seconds of a group for a second of video, since the start; 0 before there is one.",
            pace,
        )
        stages = CounterMetricFamily(
            "longtake_stage_seconds", "Seconds of rank 0, by stage.", labels=("stage",)
        )
        for stage, seconds in figures.stage_seconds.items():
            stages.add_metric((stage,), seconds)
        yield stages
        yield from _work(figures)
        ended = CounterMetricFamily("longtake_jobs_ended", "Jobs by status.", labels=("status",))
        for status, count in figures.ended.items():
            ended.add_metric((status,), count)
        yield ended
        faults = CounterMetricFamily("longtake_faults", "Groups lost, by kind.", labels=("kind",))
        for kind, count in figures.faults.items():
            faults.add_metric((kind,), count)
        yield faults
        yield _counter("longtake_faults_survived", "Faults whose job went on.", figures.survived)
        yield _counter("longtake_preemptions", "Jobs that made room.", figures.preemptions)
        yield _counter("longtake_blocks", "Blocks finished.", figures.blocks)
        yield GaugeMetricFamily(
            "longtake_queue_age_seconds",
            "How long the job that waits longest has been waiting.",
            figures.oldest_wait,
        )

    def _cluster(self) -> Iterator[Metric]:
        view = self._central.cluster()
        jobs = GaugeMetricFamily("longtake_jobs", "Jobs that have not ended.", labels=("status",))
        jobs.add_metric(("queued",), view.queued)
        jobs.add_metric(("in_progress",), view.in_progress)
        yield jobs
        devices = GaugeMetricFamily("longtake_devices", "Devices.", labels=("state",))
        busy = sum(device.job is not None for device in view.devices)
        devices.add_metric(("busy",), busy)
        devices.add_metric(("free",), len(view.devices) - busy)
        devices.add_metric(("lost",), len(view.lost))
        yield devices
        yield GaugeMetricFamily(
            "longtake_healthy",
            "1 where nothing is wrong, as /health tells.",
            float(self._central.health().ok),
        )


def _work(figures: Figures) -> Iterator[Metric]:
    """What workers tell of themselves."""
    waited = CounterMetricFamily(
        "longtake_exposed_communication_seconds",
        "Seconds that workers stood still for bytes of others.",
        labels=("device",),
    )
    for device, seconds in figures.waited.items():
        waited.add_metric((device,), seconds)
    yield waited
    sent = CounterMetricFamily(
        "longtake_link_bytes", "Bytes between workers.", labels=("source", "target")
    )
    for link, size in figures.sent.items():
        sent.add_metric(link, size)
    yield sent
    cache = GaugeMetricFamily(
        "longtake_cache_bytes", "Caches of jobs at work.", labels=("device", "state")
    )
    for device, occupancy in figures.cache.items():
        cache.add_metric((device, "used"), occupancy.used)
        cache.add_metric((device, "free"), occupancy.room - occupancy.used)
    yield cache


def _counter(name: str, words: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, words, value)
