"""Counts and durations of a server in Prometheus' text format, version 0.0.4.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import bisect
import collections
import dataclasses

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "flow_grpo_serve"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)


class Histogram:
    """Durations in seconds, in buckets."""

    def __init__(self):
        self._counts, self._total = [0] * (len(SECONDS) + 1), 0.0

    def observe(self, seconds):
        self._counts[bisect.bisect_left(SECONDS, seconds)] += 1
        self._total += seconds

    def lines(self, name):
        reached = 0
        for limit, count in zip((*SECONDS, "+Inf"), self._counts, strict=True):
            reached += count
            yield f'{name}_bucket{{le="{limit}"}} {reached}'
        yield f"{name}_sum {self._total}"
        yield f"{name}_count {reached}"


class Monitor:
    """Attributes:
    answered: Counter of (path, status) over HTTP requests.
    first_token: Histogram over streamed requests, until their first token.
    whole: Histogram over answers, until their end.
    """

    def __init__(self):
        self.answered = collections.Counter()
        self.first_token, self.whole = Histogram(), Histogram()

    def text(self, *, statistics, **gauges):
        """The page. statistics: the engine's, a dataclass of totals; gauges: numbers of now."""
        name = f"{PREFIX}_http_requests_total"
        lines = [f"# TYPE {name} counter"]
        for (path, status), count in sorted(self.answered.items()):
            lines.append(f'{name}{{path="{path}",status="{status}"}} {count}')
        for name, value in gauges.items():
            lines += [f"# TYPE {PREFIX}_{name} gauge", f"{PREFIX}_{name} {value}"]
        for name, value in dataclasses.asdict(statistics).items():
            name = f"{PREFIX}_engine_{name}_total"
            lines += [f"# TYPE {name} counter", f"{name} {value}"]
        for name, histogram in (
            ("time_to_first_token_seconds", self.first_token),
            ("answer_seconds", self.whole),
        ):
            name = f"{PREFIX}_{name}"
            lines += [f"# TYPE {name} histogram", *histogram.lines(name)]
        return "\n".join(lines) + "\n"
