"""What Prometheus reads of the gateway at /metrics, and the log of its requests."""

import logging
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from clip_core.serve.canary import REASONS

if TYPE_CHECKING:
    from collections.abc import Generator

    from prometheus_client.metrics_core import Metric
    from starlette.types import Scope

    from clip_core.serve.upstream import Upstream

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)

log = logging.getLogger(__name__)


class Metrics:
    """The figures of one application: requests by route, status and key, and which models answer."""

    def __init__(self, upstream: "Upstream") -> None:
        self.upstream = upstream
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "clip_gateway_requests", "Requests answered", ["route", "status", "key"], registry=self.registry
        )
        self.seconds = Histogram(
            "clip_gateway_request_seconds",
            "Until it was answered",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.running = Gauge("clip_gateway_running", "Questions that Triton is asked now", registry=self.registry)
        self.ready = Gauge("clip_gateway_model_ready", "1: the model answers", ["model"], registry=self.registry)
        self.running.set_function(lambda: upstream.num_running)
        self.registry.register(_Counted(upstream))

    def seen(self, scope: "Scope", status: int, seconds: float) -> None:
        """Counts and logs a request that was answered; 0: nobody waited for the answer any more."""
        route = getattr(scope.get("route"), "path", "none")  # as declared, so that there are few of them
        self.requests.labels(route, str(status), scope["state"].get("key", "")).inc()
        self.seconds.labels(route).observe(seconds)
        facts = scope["state"] | {"method": scope["method"], "path": scope["path"], "status": status}
        facts["milliseconds"] = round(1000 * seconds, 1)
        log.info("request", extra={"facts": facts})  # without the query, which is its sender's business

    def text(self) -> bytes:
        """All of them as they are now, in Prometheus's text format."""
        for model, state in dict(self.upstream.backend.states).items():
            self.ready.labels(model).set(state == "ok")
        return generate_latest(self.registry)


class _Counted(Collector):
    """What the questions to Triton count themselves."""

    def __init__(self, upstream: "Upstream") -> None:
        self.upstream = upstream

    def collect(self) -> "Generator[Metric]":
        kept = CounterMetricFamily("clip_gateway_texts", "Texts, by whether the answer was known", labels=["known"])
        kept.add_metric(["yes"], self.upstream.answers.num_hits)
        kept.add_metric(["no"], self.upstream.answers.num_misses)
        yield kept
        begun = self.upstream.canary.now()
        share = GaugeMetricFamily("clip_gateway_canary_share", "Of the callers, asked of it", labels=["release"])
        share.add_metric([begun.release if begun else "none"], begun.share if begun else 0)
        yield share
        aborts = CounterMetricFamily("clip_gateway_canary_aborts", "Canaries that did worse", labels=["reason"])
        for reason in REASONS:
            aborts.add_metric([reason], self.upstream.canary.num_aborts[reason])
        yield aborts
