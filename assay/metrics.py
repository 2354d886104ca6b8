"""What the server counts, on a Prometheus registry of its own. Knows no route and no engine.

Names follow Prometheus' habits: base units, `_seconds`, `_total`. No label's value comes from a request: dialects,
statuses, error types and stages are ours, models are the operator's, labels are the checkpoint's.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from functools import partial
from itertools import accumulate
from statistics import fmean

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    GCCollector,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from assay import __version__
from assay.errors import AssayError, SetupError
from assay.sequence import Prediction, Sequence, Timings

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_POWERS_OF_TWO = tuple(2.0**i for i in range(4, 16))
_STAGES = ("tokenize", "queue", "inference")
STATES = ("ok", "loading", "draining", "dead")
MAX_LABELS = 200  # a model with more has them counted together, so that no checkpoint fills Prometheus
OTHER = "other"


def mean_timings(predictions: Seq[Prediction]) -> Timings:
    """A request's time in each stage: the mean over its inputs, as TEI counts it. Zero where nothing was scored."""
    if len(predictions) <= 1:
        return predictions[0].timings if predictions else Timings()
    timings = [prediction.timings for prediction in predictions]
    return Timings(
        fmean(timing.tokenize for timing in timings),
        fmean(timing.queue for timing in timings),
        fmean(timing.inference for timing in timings),
    )


class Metrics:
    """One per server. Each metric is declared once, here; handlers and the engine only set or observe."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.requests = _Counter(
            "assay_requests", "Requests answered, by dialect and HTTP status.", ["dialect", "status"], r
        )
        self.request_seconds = _Histogram(
            "assay_request_seconds", "From a request's first byte to its answer.", ["dialect", "status_class"],
            _SECONDS, r,
        )  # fmt: skip
        self.errors = _Counter("assay_errors", "Requests refused or failed, by type.", ["type"], r)
        for kind in _error_types(AssayError):
            self.errors.labels(kind)  # at 0 from the start, so that a rate sees the first
        self._of_models(r)
        self._of_engines(r)
        ProcessCollector(registry=r)
        PlatformCollector(registry=r)
        GCCollector(registry=r)
        self._requests: dict[tuple[str, int], tuple[_Count, _Buckets]] = {}

    def _of_models(self, r: CollectorRegistry) -> None:
        self.stage_seconds = _Histogram(
            "assay_stage_seconds", "A request's time in each stage, the mean over its inputs.", ["model", "stage"],
            _SECONDS, r,
        )  # fmt: skip
        self.sequences = _Counter("assay_sequences", "Sequences scored.", ["model"], r)
        self.shared_sequences = _Counter(
            "assay_shared_sequences", "Sequences that had the answer of an equal one in their request.", ["model"], r
        )
        self.tokens = _Counter("assay_tokens", "Tokens scored.", ["model"], r)
        self.padding_tokens = _Counter(
            "assay_padding_tokens", "Tokens on the device that belong to no sequence.", ["model"], r
        )
        self.batch_tokens = _Histogram("assay_batch_tokens", "Tokens in a batch.", ["model"], _POWERS_OF_TWO, r)
        self.batch_sequences = _Histogram(
            "assay_batch_sequences", "Sequences in a batch.", ["model"], tuple(2.0**i for i in range(11)), r
        )
        self.labels = _Counter(
            "assay_labels", f"Inputs by their highest label; from the {MAX_LABELS + 1}th label on, `{OTHER}`.",
            ["model", "label"], r,
        )  # fmt: skip
        self.model = Info("assay_model", "The models that are loaded; always 1.", ["model"], registry=r)
        self.model_state = Gauge(
            "assay_model_state", f"1 for the state that a model is in: {', '.join(STATES)}.", ["model", "state"],
            registry=r,
        )  # fmt: skip

    def _of_engines(self, r: CollectorRegistry) -> None:
        def gauge(name: str, says: str) -> Gauge:
            return Gauge(f"assay_{name}", says, ["model"], registry=r)

        self.queue_tokens = gauge("queue_tokens", "Tokens admitted and not yet on the device.")
        self.queue_sequences = gauge("queue_sequences", "Sequences waiting for the device.")
        self.queue_limit_tokens = gauge("queue_limit_tokens", "Tokens that may wait for the device.")
        self.line_requests = gauge("line_requests", "Requests in line for room in the queue (--when-full wait).")
        self.requests_in_flight = gauge("requests_in_flight", "Requests accepted by the engine and not answered.")
        self.batch_failures = _Counts("assay_batch_failures", "Forward passes that failed.", r)
        self.threads_lost = _Counts("assay_tokenizer_threads_lost", "Tokenizer threads that hung and were given up.", r)
        self.cache_hits = _Counts("assay_cache_hits", "Sequences that were answered from the cache.", r)
        self.cache_misses = _Counts("assay_cache_misses", "Sequences that were looked up in the cache in vain.", r)
        self.cache_bytes = gauge("cache_bytes", "Memory that the cache of answers takes.")

    def of(self, model: str) -> "ModelMetrics":
        """What one model's engine counts."""
        return ModelMetrics(self, model)

    def observe_request(self, dialect: str, status: int, seconds: float) -> None:
        """One request is answered."""
        bound = self._requests.get((dialect, status))
        if bound is None:
            bound = (
                self.requests.labels(dialect, str(status)),
                self.request_seconds.labels(dialect, f"{status // 100}xx"),
            )
            self._requests[dialect, status] = bound
        bound[0].inc()
        bound[1].observe(seconds)

    def render(self) -> bytes:
        """The registry in Prometheus' text format."""
        return generate_latest(self.registry)


class _Counter(Collector):
    """A counter that the event loop alone counts: the library's takes a lock and four calls each time."""

    def __init__(self, name: str, documentation: str, labels: Seq[str], registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._children: dict[tuple[str, ...], _Count] = {}
        registry.register(self)

    def labels(self, *values: str) -> "_Count":
        return self._children.setdefault(values, _Count())

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, child in self._children.items():
            family.add_metric(values, child.value)
        yield family


class _Count:
    """Of one set of labels."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount


class _Counts(Collector):
    """A counter that somebody else keeps, by model; read when it is scraped."""

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._read: dict[str, Callable[[], float]] = {}
        registry.register(self)

    def set_function(self, model: str, read: Callable[[], float]) -> None:
        self._read[model] = read

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._documentation, labels=["model"])
        for model, read in self._read.items():
            family.add_metric([model], read())
        yield family


class _Histogram(Collector):
    """A histogram that the event loop alone observes: the library's takes three locks each time, and four times as
    long. buckets: their upper bounds but the last, which is infinite.
    """

    def __init__(
        self, name: str, documentation: str, labels: Seq[str], buckets: Seq[float], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._bounds = [*buckets, math.inf]
        self._children: dict[tuple[str, ...], _Buckets] = {}
        registry.register(self)

    def labels(self, *values: str) -> "_Buckets":
        return self._children.setdefault(values, _Buckets(self._bounds))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, child in self._children.items():
            counts = zip(map(floatToGoString, self._bounds), accumulate(child.counts), strict=True)
            family.add_metric(values, [*counts], child.sum)
        yield family


class _Buckets:
    """Of one set of labels: how many observations fell into each, and their sum."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: list[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * len(bounds)
        self.sum = 0.0

    def observe(self, amount: float) -> None:
        self.counts[bisect_left(self._bounds, amount)] += 1
        self.sum += amount


class ModelMetrics:
    """The metrics of one model, bound to its name once, so that counting costs no look-up."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self.sequences = metrics.sequences.labels(model)
        self.shared_sequences = metrics.shared_sequences.labels(model)
        self.tokens = metrics.tokens.labels(model)
        self.padding_tokens = metrics.padding_tokens.labels(model)
        self.batch_tokens = metrics.batch_tokens.labels(model)
        self.batch_sequences = metrics.batch_sequences.labels(model)
        self.queue_tokens = metrics.queue_tokens.labels(model)
        self.queue_sequences = metrics.queue_sequences.labels(model)
        self.queue_limit_tokens = metrics.queue_limit_tokens.labels(model)
        self.line_requests = metrics.line_requests.labels(model)
        self.requests_in_flight = metrics.requests_in_flight.labels(model)
        self._stages = [metrics.stage_seconds.labels(model, stage) for stage in _STAGES]
        self._labels: dict[str, _Count] = {}

    def describe(self, labels: Seq[str], **facts: object) -> None:
        """The model is loaded. facts: what the info metric says of it."""
        values = {name: str(value) for name, value in facts.items()}
        self._metrics.model.labels(self._model).info({**values, "version": __version__})
        for place, label in enumerate(labels):
            name = label if place < MAX_LABELS else OTHER
            self._labels.setdefault(label, self._metrics.labels.labels(self._model, name))

    def read_state(self, read: Callable[[], str]) -> None:
        """read: one of STATES, asked at each scrape."""
        for state in STATES:
            self._metrics.model_state.labels(self._model, state).set_function(partial(_is, read, state))

    def read_failures(self, batches: Callable[[], int], tokenizer_threads: Callable[[], int]) -> None:
        """How many there were so far, asked at each scrape."""
        self._metrics.batch_failures.set_function(self._model, batches)
        self._metrics.threads_lost.set_function(self._model, tokenizer_threads)

    def read_cache(self, hits: Callable[[], int], misses: Callable[[], int], num_bytes: Callable[[], int]) -> None:
        """The cache of answers, asked at each scrape."""
        self._metrics.cache_hits.set_function(self._model, hits)
        self._metrics.cache_misses.set_function(self._model, misses)
        self._metrics.cache_bytes.labels(self._model).set_function(num_bytes)

    def observe_batch(self, num_tokens: int, sequences: Seq[Sequence]) -> None:
        """A batch has run. num_tokens: on the device."""
        self.batch_tokens.observe(num_tokens)
        self.batch_sequences.observe(len(sequences))
        self.tokens.inc(real := sum([sequence.num_tokens for sequence in sequences]))
        self.padding_tokens.inc(num_tokens - real)
        self.sequences.inc(len(sequences))

    def observe_predictions(self, predictions: Seq[Prediction]) -> None:
        """A request is scored: once for all its inputs, since an observation costs microseconds."""
        if not predictions:
            return
        timings = mean_timings(predictions)
        tokenize, queue, inference = self._stages
        tokenize.observe(timings.tokenize)
        queue.observe(timings.queue)
        inference.observe(timings.inference)
        for prediction in predictions:
            self._labels[prediction.label].inc()


def _is(read: Callable[[], str], state: str) -> float:
    return float(read() == state)


def _error_types(kind: type[AssayError]) -> Iterable[str]:
    """Of everything that reaches a caller."""
    if issubclass(kind, SetupError):
        return
    yield kind.type
    for child in kind.__subclasses__():
        yield from _error_types(child)
