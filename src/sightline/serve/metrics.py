"""The metrics of a server in the format of Prometheus, which ``GET /metrics`` returns."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.inference.results import Prediction
from sightline.serve.admission import Admission
from sightline.serve.feature_logs import FeatureLogs
from sightline.serve.served_model import ServedModel

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # makes prometheus_client combine the metrics of several processes
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
RELOAD_OUTCOMES = ("loaded", "failed", "removed")
_MODEL_PATH = re.compile(r"(?P<protocol>/v2)?/models/(?P<name>[^/]+)(/versions/[^/]+)?(/(?P<action>[^/]+))?/?")
OOD_SCORES = (-50, -30, -20, -10, -5, -2, 0, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 5, 10)  # energies and distances


class Metrics(Collector):
    """Everything that a server counts and measures, per model by name, and what `logs` drop; times are in seconds.

    If the variable `SHARED_FOLDER` is set, all processes that share it count together, and each shows the totals.
    """

    def __init__(self, logs: FeatureLogs | None = None) -> None:
        self.registry = self._view = CollectorRegistry()
        if SHARED_FOLDER in os.environ:
            self._view = CollectorRegistry()
            self._view.register(_SharedMetrics())
        else:
            ProcessCollector(registry=self.registry)
        self._view.register(self)
        self._models: list[ServedModel] = []
        self._names: list[str] = []
        self._requests = self._counter(
            "requests", "Requests by the status of their response; without a model: those that name none.", "endpoint",
            "code",
        )  # fmt: skip
        self._request_seconds = self._histogram(
            "request_seconds", "From the header of a request to the end of its response.", "endpoint"
        )
        self.images = self._counter("images", "Images by outcome: predicted, unreadable or failed.", "outcome")
        self.decisions = self._counter(
            "decisions",
            "Predictions of a model with thresholds by decision: class, ancestor, set, labels, mask or abstain.",
            "decision",
        )
        self.decode_seconds = self._histogram("decode_seconds", "Decoding one image, with the wait for a process.")
        self.queue_seconds = self._histogram("queue_seconds", "An image's wait for the batch before it.")
        self.model_seconds = self._histogram("model_seconds", "Computing one batch.")
        self.batch_size = self._histogram("batch_size", "Images in a batch.", buckets=BATCH_SIZES)
        self.ood_score = self._histogram(
            "ood_score", "Out-of-distribution scores of a model with thresholds.", buckets=OOD_SCORES
        )
        self._reloads = self._counter(
            "model_reloads", "Changes of models on disk by outcome: loaded, failed or removed.", "outcome"
        )
        text = "Connections answered and closed before a request could be read."
        self._refusals = Counter("sightline_refused_connections", text, ["code"], registry=self.registry)
        for code in (400, 408, 503):
            self._refusals.labels(str(code))  # from 0, so that Prometheus sees the first increase
        self._in_flight = self._gauge("requests_in_flight", "Requests in flight.")
        self._bytes_in_flight = self._gauge("body_bytes_in_flight", "Bytes of the bodies of requests in flight.")
        self.workers = self._gauge("workers", "Processes that answer.")
        self._logs = logs

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"sightline_{name}", text, ["model", *labels], registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"sightline_{name}", text, registry=self.registry, multiprocess_mode="livesum")

    def _histogram(self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
        return Histogram(f"sightline_{name}", text, ["model", *labels], buckets=buckets, registry=self.registry)

    def for_model(self, name: str) -> ModelMetrics:
        """Return the metrics of one model, over all of its versions."""
        return ModelMetrics(self, name)

    def show_models(self, models: Sequence[ServedModel]) -> None:
        """Show the current models and versions, the newest version of each last."""
        self._models = list(models)
        self._names = list(dict.fromkeys(served.name for served in models))
        for name, outcome in product(["", *self._names], RELOAD_OUTCOMES):
            self._reloads.labels(name, outcome)  # from 0, so that Prometheus sees the first increase

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Yield the metrics of the models in this process; other processes have the same models."""
        info = _make_family("model_info", "The versions of the models.", "version", "weights_sha256")
        ood_limits = {}
        for served in self._models:
            info.add_metric([served.name, served.version, served.weights_sha256 or ""], 1)
            thresholds = served.classifier.thresholds
            if thresholds is not None and thresholds.ood_limit is not None:
                ood_limits[served.name] = thresholds.ood_limit  # ends with that of the newest version
        limit = _make_family("ood_limit", "The score above which an image is out of distribution.")
        for name, value in ood_limits.items():
            limit.add_metric([name], value)
        yield from (info, limit)
        if self._logs is not None:
            text = "Images that could not be written to the log of features."
            dropped = _make_family("feature_log_dropped_images", text)
            for name in self._names:
                dropped.add_metric([name], self._logs.count_dropped(name))
            yield dropped

    def watch_admission(self, admission: Admission) -> None:
        """Show how many requests and bytes are in flight."""

        def show() -> None:
            self._in_flight.set(admission.requests)
            self._bytes_in_flight.set(admission.bytes)

        admission.on_change = show
        show()

    def count_reload(self, name: str, outcome: str) -> None:
        """Count a model that changed on disk; `outcome` is loaded, failed or removed."""
        self._reloads.labels(name, outcome).inc()

    def count_refusal(self, code: int) -> None:
        """Count a connection that was closed with this status before a request could be read."""
        self._refusals.labels(str(code)).inc()

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count one request under the model and the endpoint of its path."""
        labels = name_model(path, self._names), name_endpoint(path)
        self._requests.labels(*labels, str(status)).inc()
        self._request_seconds.labels(*labels).observe(seconds)

    def make_route(self) -> Route:
        """Return the route of ``/metrics``: as plain text, or as OpenMetrics if the client prefers that."""

        async def metrics(request: Request) -> Response:
            try:
                encode, content_type = choose_encoder(request.headers.get("accept", ""))
            except TypeError:  # the client sent a version that is not a number
                encode, content_type = choose_encoder("")
            is_open = content_type.startswith("application/openmetrics-text")
            view = _OpenMetrics(self._view) if is_open else self._view
            return Response(encode(view), headers={"Content-Type": content_type})

        return Route("/metrics", metrics)


class _SharedMetrics(Collector):
    """The totals over all processes, ignoring files of starting processes, which are empty at first."""

    def collect(self) -> Iterable[Metric]:
        paths = Path(os.environ[SHARED_FOLDER]).glob("*.db")
        metrics: Iterable[Metric] = MultiProcessCollector.merge([str(path) for path in paths if _has_content(path)])  # type: ignore[no-untyped-call]
        return metrics


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:  # its process has ended in the meantime
        return False


class _OpenMetrics(Collector):
    """A collector's metrics for OpenMetrics, where histograms with buckets below 0 have no sum and no count."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def collect(self) -> Iterable[Metric]:
        for family in self._collector.collect():
            if any(sample.labels.get("le", "").startswith("-") for sample in family.samples):
                family.samples = [one for one in family.samples if not one.name.endswith(("_sum", "_count"))]
            yield family


def _make_family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"sightline_{name}", text, labels=["model", *labels])


class ModelMetrics:
    """What is counted and measured for one model."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics, self._name = metrics, name
        self.decode_seconds = metrics.decode_seconds.labels(name)
        self.model_seconds = metrics.model_seconds.labels(name)
        self._queue_seconds = metrics.queue_seconds.labels(name)
        self._batch_size = metrics.batch_size.labels(name)
        self._ood_score = metrics.ood_score.labels(name)

    def start_batch(self, starts: Sequence[float]) -> None:
        """Record a batch whose images have been waiting since `starts`, in seconds of `time.perf_counter`."""
        now = time.perf_counter()
        self._batch_size.observe(len(starts))
        for start in starts:
            self._queue_seconds.observe(now - start)

    def count_unreadable(self) -> None:
        """Count an image that cannot be read."""
        self._metrics.images.labels(self._name, "unreadable").inc()

    def count_failed(self, count: int) -> None:
        """Count the images of a batch that failed."""
        self._metrics.images.labels(self._name, "failed").inc(count)

    def count_prediction(self, prediction: Prediction) -> None:
        """Count the outcome for one image, and its decision if there is one."""
        outcome = "predicted" if prediction.error is None else "failed"
        self._metrics.images.labels(self._name, outcome).inc()
        if prediction.decision is not None:
            self._metrics.decisions.labels(self._name, prediction.decision.decision).inc()
            if prediction.decision.ood_score is not None:
                self._ood_score.observe(prediction.decision.ood_score)


def name_endpoint(path: str) -> str:
    """Return the endpoint of a path, as a metric label, which must have few values.

    >>> name_endpoint("/v2/models/cats/infer"), name_endpoint("/models/cats/predict"), name_endpoint("/wp-login.php")
    ('infer', 'predict', 'other')
    """
    match = _MODEL_PATH.fullmatch(path)
    for endpoint in ("predict", "explain"):
        if path == f"/{endpoint}" or (match and not match["protocol"] and match["action"] == endpoint):
            return endpoint
    return "infer" if match and match["protocol"] and match["action"] == "infer" else "other"


def name_model(path: str, names: Sequence[str]) -> str:
    """Return which of the models `names` a path refers to, by default the only one; empty for none of them.

    >>> [name_model(path, ["cats", "dogs"]) for path in ("/v2/models/cats/infer", "/models/owls", "/predict")]
    ['cats', '', '']
    """
    if len(names) == 1:
        return names[0]
    match = _MODEL_PATH.fullmatch(path)
    return match["name"] if match and match["name"] in names else ""
