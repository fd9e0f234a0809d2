"""The metrics of a server in the format of Prometheus, which ``GET /metrics`` returns."""

from __future__ import annotations

import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.inference.feature_log import FeatureLog
from sightline.inference.results import Prediction
from sightline.serve.admission import Admission
from sightline.serve.served_model import ServedModel

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
OOD_SCORES = (-50, -30, -20, -15, -10, -8, -6, -5, -4, -3, -2, -1, 0, 1, 2, 5)  # energies of logits


class Metrics:
    """What a server counts and measures, each of its models by name; times are in seconds."""

    def __init__(self, served: ServedModel) -> None:
        name = served.name
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "sightline_requests", "Requests by the status of their response.", ["model", "endpoint", "code"],
            registry=self.registry,
        )  # fmt: skip
        self._request_seconds = Histogram(
            "sightline_request_seconds", "From the header of a request to the end of its response.",
            ["model", "endpoint"], buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._images = Counter(
            "sightline_images", "Images by outcome: predicted, unreadable or failed.", ["model", "outcome"],
            registry=self.registry,
        )  # fmt: skip
        self._decisions = Counter(
            "sightline_decisions", "Predictions of a model with thresholds by decision: class, set or abstain.",
            ["model", "decision"], registry=self.registry,
        )  # fmt: skip
        self._name = name
        self.decode_seconds = self._histogram("decode_seconds", "Decoding one image, with the wait for a process.")
        self._queue_seconds = self._histogram("queue_seconds", "An image's wait for the batch before it.")
        self.model_seconds = self._histogram("model_seconds", "Computing one batch.")
        self._batch_size = self._histogram("batch_size", "Images in a batch.", BATCH_SIZES)
        self._ood_score = self._histogram(
            "ood_score", "Out-of-distribution scores of a model with thresholds.", OOD_SCORES
        )
        self._describe_model(served)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
        histogram = Histogram(f"sightline_{name}", text, ["model"], buckets=buckets, registry=self.registry)
        return histogram.labels(self._name)

    def _describe_model(self, served: ServedModel) -> None:
        labels = {"model": served.name, "version": served.version, "weights_sha256": served.weights_sha256 or ""}
        Gauge("sightline_model_info", "The model.", list(labels), registry=self.registry).labels(**labels).set(1)
        thresholds = served.classifier.thresholds
        if thresholds is not None and thresholds.ood_limit is not None:
            limit = Gauge(
                "sightline_ood_limit", "The score above which an image is out of distribution.", ["model"],
                registry=self.registry,
            )  # fmt: skip
            limit.labels(served.name).set(thresholds.ood_limit)

    def watch_admission(self, admission: Admission) -> None:
        """Show how much is in flight."""
        for name, text, read in (
            ("requests_in_flight", "Requests in flight.", lambda: admission.requests),
            ("body_bytes_in_flight", "Bytes of the bodies of requests in flight.", lambda: admission.bytes),
        ):
            Gauge(f"sightline_{name}", text, registry=self.registry).set_function(read)

    def watch_feature_log(self, log: FeatureLog) -> None:
        """Show how many images are missing from the log of features."""
        gauge = Gauge(
            "sightline_feature_log_dropped_images", "Images that could not be written to the log of features.",
            ["model"], registry=self.registry,
        )  # fmt: skip
        gauge.labels(self._name).set_function(lambda: log.dropped)

    def count_request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count one request; `endpoint` is predict, infer or other."""
        self._requests.labels(self._name, endpoint, str(status)).inc()
        self._request_seconds.labels(self._name, endpoint).observe(seconds)

    def start_batch(self, starts: Sequence[float]) -> None:
        """Measure a batch of images that have been waiting since `starts`, in seconds of `time.perf_counter`."""
        now = time.perf_counter()
        self._batch_size.observe(len(starts))
        for start in starts:
            self._queue_seconds.observe(now - start)

    def count_unreadable(self) -> None:
        """Count an image that cannot be read."""
        self._images.labels(self._name, "unreadable").inc()

    def count_failed(self, count: int) -> None:
        """Count the images of a batch that failed."""
        self._images.labels(self._name, "failed").inc(count)

    def count_prediction(self, prediction: Prediction) -> None:
        """Count the outcome for one image, and the decision if there is one."""
        self._images.labels(self._name, "predicted" if prediction.error is None else "failed").inc()
        if prediction.decision is not None:
            self._decisions.labels(self._name, prediction.decision.decision).inc()
            self._ood_score.observe(prediction.decision.ood_score)

    def make_route(self) -> Route:
        """Return the route of ``/metrics``: as text, or in OpenMetrics if a client prefers that."""

        async def metrics(request: Request) -> Response:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
            return Response(encode(self.registry), headers={"Content-Type": content_type})

        return Route("/metrics", metrics)
