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
            "assay_stage_seconds", "A sequence's time in each stage: tokenize, queue, inference.", ["model", "stage"],
            buckets=_SECONDS, registry=r,
        )  # fmt: skip
        self.sequences = Counter("assay_sequences", "Sequences scored.", ["model"], registry=r)
        self.tokens = Counter("assay_tokens", "Tokens scored.", ["model"], registry=r)
        self.batch_tokens = Histogram(
            "assay_batch_tokens", "Tokens in a batch; none is padding.", ["model"], buckets=_POWERS_OF_TWO, registry=r
        )
        self.batch_sequences = Histogram(
            "assay_batch_sequences", "Sequences in a batch.", ["model"],
            buckets=tuple(2.0**i for i in range(11)), registry=r,
        )  # fmt: skip
        self.queue_tokens = Gauge(
            "assay_queue_tokens", "Tokens admitted and not yet on the device.", ["model"], registry=r
        )
        self.queue_sequences = Gauge(
            "assay_queue_sequences", "Sequences waiting for the device.", ["model"], registry=r
        )

    def of(self, model: str) -> "ModelMetrics":
        """What one model's engine counts."""
        return ModelMetrics(self, model)

    def render(self) -> bytes:
        """The registry in Prometheus' text format."""
        return generate_latest(self.registry)


class ModelMetrics:
    """The metrics of one model, bound to its name once, so that counting costs no look-up."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.sequences = metrics.sequences.labels(model)
        self.tokens = metrics.tokens.labels(model)
        self.batch_tokens = metrics.batch_tokens.labels(model)
        self.batch_sequences = metrics.batch_sequences.labels(model)
        self.queue_tokens = metrics.queue_tokens.labels(model)
        self.queue_sequences = metrics.queue_sequences.labels(model)
        self._stages = {
            stage: metrics.stage_seconds.labels(model, stage) for stage in ("tokenize", "queue", "inference")
        }

    def observe_stages(self, timings: Timings) -> None:
        self._stages["tokenize"].observe(timings.tokenize)
        self._stages["queue"].observe(timings.queue)
        self._stages["inference"].observe(timings.inference)
