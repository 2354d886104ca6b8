"""What the server counts, on a Prometheus registry of its own. Knows no route and no engine."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from assay.sequence import Timings

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_POWERS_OF_TWO = tuple(2.0**i for i in range(4, 16))


class Metrics:
    """One per server. Each metric is declared once, here; handlers and the engine only set or observe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter(
            "assay_requests", "Requests answered, by dialect and HTTP status.", ["dialect", "status"], registry=r
        )
        self.request_seconds = Histogram(
            "assay_request_seconds", "From the request's first byte to its answer.", ["dialect"],
            buckets=_SECONDS, registry=r,
        )  # fmt: skip
        self.errors = Counter("assay_errors", "Requests refused or failed, by type.", ["type"], registry=r)
        self.stage_seconds = Histogram(
            "assay_stage_seconds", "A sequence's time in each stage: tokenize, queue, inference.", ["stage"],
            buckets=_SECONDS, registry=r,
        )  # fmt: skip
        self.sequences = Counter("assay_sequences", "Sequences scored.", registry=r)
        self.tokens = Counter("assay_tokens", "Tokens scored.", registry=r)
        self.batch_tokens = Histogram(
            "assay_batch_tokens", "Tokens in a batch; none is padding.", buckets=_POWERS_OF_TWO, registry=r
        )
        self.batch_sequences = Histogram(
            "assay_batch_sequences", "Sequences in a batch.", buckets=tuple(2.0**i for i in range(11)), registry=r
        )
        self.queue_tokens = Gauge("assay_queue_tokens", "Tokens admitted and not yet on the device.", registry=r)
        self.queue_sequences = Gauge("assay_queue_sequences", "Sequences waiting for the device.", registry=r)

    def observe_stages(self, timings: Timings) -> None:
        for stage, seconds in (
            ("tokenize", timings.tokenize),
            ("queue", timings.queue),
            ("inference", timings.inference),
        ):
            self.stage_seconds.labels(stage).observe(seconds)

    def render(self) -> bytes:
        """The registry in Prometheus' text format."""
        return generate_latest(self.registry)
