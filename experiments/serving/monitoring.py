"""Counts and durations of a server, by prometheus-client."""

import dataclasses
import functools

import prometheus_client
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "flow_grpo_serve"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)


class Monitor:
    """The metrics of one server.

    answered: Counter of HTTP requests by path and status.
    first_token: Histogram over streamed requests, until their first token.
    whole: Histogram over answers, until their end.
    """

    def __init__(self):
        prometheus_client.disable_created_metrics()  # times of start: not in our pages
        self._registry = prometheus_client.CollectorRegistry()
        here = dict(namespace=PREFIX, registry=self._registry)
        self.answered = prometheus_client.Counter(
            "http_requests", "HTTP requests.", ("path", "status"), **here
        )
        seconds = functools.partial(prometheus_client.Histogram, buckets=SECONDS, **here)
        self.first_token = seconds("time_to_first_token_seconds", "Until a stream's first token.")
        self.whole = seconds("answer_seconds", "Until an answer's end.")

    def count(self, status, path="other"):
        """Counts an answer."""
        self.answered.labels(path, status).inc()

    def text(self, *, statistics, **gauges):
        """Returns the page. statistics: the engine's, a dataclass of totals; gauges: of now."""
        present = prometheus_client.CollectorRegistry()
        present.register(_Families(dataclasses.asdict(statistics), gauges))
        pages = [prometheus_client.generate_latest(each) for each in (self._registry, present)]
        return b"".join(pages)


class _Families:
    """A collector of values that are counted elsewhere."""

    def __init__(self, totals, gauges):
        self._totals, self._gauges = totals, gauges

    def collect(self):
        for name, value in self._gauges.items():
            yield GaugeMetricFamily(f"{PREFIX}_{name}", "Now.", value=value)
        for name, value in self._totals.items():
            yield CounterMetricFamily(f"{PREFIX}_engine_{name}", "Of the engine.", value=value)
