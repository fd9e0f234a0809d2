"""The search for a smaller model that is no worse: cheap methods first, each candidate saved when it is ready.

1. Float16 weights and int8 of the large model, without training.
2. A smaller head: the head is trained first, the whole network only if that is not enough.
3. Pruning in rounds from the smallest good candidate. A round by batch-norm scales that fails is repeated by Taylor
   scores; after that, each failure halves the pruned fraction.
4. Distillation into a smaller network of the registry, if there is one.

A candidate is good if its validation accuracy is no worse than the large model's (`judge.no_worse`, with
`Budget.max_drop`). It is written in every requested precision. Decisions depend on the records alone, so a search that
is resumed takes the same steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.compression import channels, rightsize, slim
from sightline.compression.judge import no_worse
from sightline.compression.recovery import NEW_TIMES, Trainer
from sightline.compression.store import Candidate, Store
from sightline.config import ModelConfig
from sightline.data.dataset import Dataset
from sightline.errors import DivergedError, ModelError
from sightline.export import onnx, quantize
from sightline.models import registry, weights, whitening
from sightline.models.build import Network, Plan, build, outline
from sightline.models.describe import describe, parameters
from sightline.prediction import parity
from sightline.prediction.bundle import Bundle
from sightline.prediction.keras import load_model
from sightline.prediction.onnx import OnnxPredictor
from sightline.preprocess import Preprocess
from sightline.records import Samples
from sightline.training import checkpoint
from sightline.watch import Watcher

MEANS = ("rightsize", "slim", "distill", "int8", "float16")
CUT = 0.5  # fraction of the network to prune in a round
FAILURES = 3  # rounds that may fail, each with half the cut of the previous one
ROUNDS = 16
TRIES = 4  # maximum fine-tunings of a network until it is good
STUDENT_RATE = 1e-3
CALIBRATION = 128  # training images
SECONDS = 2.0  # of latency measurement for each candidate

Pack = Callable[[Any, bytes, OnnxPredictor, Mapping[str, Any]], Bundle]
"""Called with the Keras model, its ONNX file, that file's predictor and further fields of the manifest."""
Calibrate = Callable[[Any, NDArray[np.float32], NDArray[np.int32]], Any]
"""Called with a Keras model of temperature 1, its logits of the validation split [N, K] and the labels there [N]."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits; None: no limit. `max_drop` is a fraction (0.01: one point), `max_latency` is in milliseconds.

    A `max_drop` of 0 means no significant loss, see `judge.no_worse`.
    """

    max_drop: float = 0.0
    max_bytes: int | None = None
    max_latency: float | None = None
    max_parameters: int | None = None

    def misses(self, found: Candidate, large: float) -> list[str]:
        """Return, in words, each limit that a candidate misses and by how much; `large` is the accuracy to keep."""
        rows: list[tuple[str, float, float | None, str, float]] = [
            ("size", found.bytes, self.max_bytes, "MB", 1e6),
            ("latency", found.latency, self.max_latency, "ms", 1),
            ("parameters", found.parameters, self.max_parameters, "", 1),
        ]
        out = []
        if not no_worse(found.lost, found.won, found.count, self.max_drop):
            out.append(f"accuracy {100 * (large - found.accuracy):.2f} points below, {100 * self.max_drop:g} allowed")
        for name, value, most, unit, scale in rows:
            if most is not None and value > most:
                figures = f"{value / scale:,.6g} {unit}".strip(), f"{most / scale:,.6g} {unit}".strip()
                out.append(f"{name} {figures[0]}, {figures[1]} allowed")
        return out


@dataclass(frozen=True, slots=True)
class Subject:
    """The model to compress: a Keras model, its configuration and data, and how it is packed.

    `calibrate` sets the temperature of each candidate's own weights; None where the run has none.
    """

    model: Any
    config: ModelConfig
    seed: int
    classes: tuple[str, ...]
    preprocess: Preprocess
    data: Dataset
    threads: int
    lineage: Mapping[str, Any]
    pack: Pack
    calibrate: Calibrate | None


class Search:
    """A search; `candidates` grows as it runs."""

    def __init__(
        self, subject: Subject, trainer: Trainer, store: Store, budget: Budget, means: Sequence[str], watcher: Watcher
    ) -> None:
        self.subject, self.trainer, self.store, self.budget = subject, trainer, store, budget
        self.means, self.watcher = frozenset(means), watcher
        self.candidates: list[Candidate] = []
        self._models: dict[str, Any] = {"large": subject.model}
        self._validation = subject.data.part("validation")
        self._of_large: NDArray[np.bool_] | None = None

    def go(self) -> tuple[Candidate, ...]:
        """Create all candidates, or read those that exist; the first is the large model itself."""
        large = self._attempt("large", None, self.subject.lineage, lambda: self.subject.model)
        if large.failed:
            raise DivergedError(f"The large model cannot be used: {large.failed}.")
        self._forms(large)
        base = self._rightsized(large) if "rightsize" in self.means else large
        if "slim" in self.means:
            base = self._slimmed(base)
        if "distill" in self.means:
            self._students(base)
        return tuple(self.candidates)

    def best(self) -> Candidate | None:
        """Return the smallest file that meets the budget."""
        large = self.candidates[0].accuracy
        fit = [c for c in self.candidates if not c.failed and not self.budget.misses(c, large)]
        return min(fit, key=lambda c: (c.bytes, c.parameters, c.latency), default=None)

    def nearest(self) -> tuple[Candidate, list[str]]:
        """Return the candidate that exceeds its limits least, relative to them, and the limits that it misses."""
        large = self.candidates[0].accuracy
        ranked = min((c for c in self.candidates if not c.failed), key=self._excess)
        return ranked, self.budget.misses(ranked, large)

    def _excess(self, found: Candidate) -> float:
        budget, large = self.budget, self.candidates[0].accuracy
        limits = (
            (found.bytes, budget.max_bytes), (found.latency, budget.max_latency),
            (found.parameters, budget.max_parameters),
        )  # fmt: skip
        excess = [value / max(most, 1e-9) - 1 for value, most in limits if most is not None]
        drop = 0.0 if self._good(found) else large - found.accuracy - budget.max_drop
        return max([*excess, 10 * drop, 0.0])  # 10 points weigh as twice the size

    # ---- means ---------------------------------------------------------------------------------------------------

    def _rightsized(self, large: Candidate) -> Candidate:
        for number, config in enumerate(rightsize.heads(self.subject.config), 1):
            name = "rightsize" if number == 1 else f"rightsize-{number}"
            step = {"step": "rightsize", "pooling": config.pooling, "hidden": list(config.hidden or ())}
            found = self._attempt(name, large, step, partial(self._new_head, config))
            if self._good(found):
                self._forms(found)
                return found
        return large

    def _new_head(self, config: ModelConfig) -> Any:
        network = rightsize.rebuilt(self.subject.model, config, self.subject.seed)
        trained = Network(network.model, network.backbone, self.trainer.pretrained)
        self.trainer.head(trained)
        if not self._stands(self._answers_of(network.model)):
            self._recover(trained)
        return network.model

    def _recover(self, network: Network) -> None:
        """Fine-tune until `network` is good, at most `TRIES` times, each from the best state so far.

        It stops early if further gains as large as the last would not be enough: fine-tuning takes the most time.
        """
        right, arrays = self._answers_of(network.model), checkpoint.variables(network.model)
        floor = self.candidates[0].accuracy - self.budget.max_drop - 1e-9
        for left in reversed(range(TRIES if self.trainer.epochs else 0)):
            before = best = float(right.mean())
            self.trainer.recover(network)
            found = self._answers_of(network.model)
            if found.mean() > best:
                best, right, arrays = float(found.mean()), found, checkpoint.variables(network.model)
            else:
                checkpoint.restore(network.model, arrays)
            if self._stands(right) or best + left * (best - before) < floor:
                return

    def _slimmed(self, base: Candidate) -> Candidate:
        cut, failures, by = CUT, 0, "scale"
        for number in range(1, ROUNDS + 1):
            step = {"step": "slim", "round": number, "importance": by, "cut": cut}
            found = self._attempt(f"slim-{number}", base, step, partial(self._cut, base, by, cut))
            if self._good(found) and found.parameters < base.parameters:
                base = found
                self._forms(found)
            elif by == "taylor":
                failures += 1
                cut /= 2
                if failures == FAILURES or found.parameters == base.parameters:
                    break
            by = "taylor"  # also where scales have failed: first-order terms may do with the same cut
        return base

    def _cut(self, base: Candidate, by: str, cut: float) -> Any:
        model = self._model(base.name)
        found = channels.trace(model)
        taylor = by == "taylor"
        scores = self.trainer.taylor(model, found) if taylor else slim.by_scale(found)
        small = slim.slimmed(model, found, slim.choose(found, scores, 1 - cut, weigh=taylor))
        self._recover(self.trainer.network(small))
        return small

    def _students(self, base: Candidate) -> None:
        for name, config in students(self._validation.pixels.shape[1:3]):
            if (name, config.alpha) == (self.subject.config.name, self.subject.config.alpha):
                continue
            height, width, depth = self._validation.pixels.shape[1:]
            entry = registry.find(name)
            start = weights.local_file(entry, config.alpha, height if height == width else 0)
            plan = Plan(config, height, width, depth, len(self.subject.classes), self.subject.seed, weights=start)
            if parameters(outline(plan).model) >= base.parameters:
                continue
            step = {"step": "distill", "student": name, "pretrained": start is not None}
            found = self._attempt(f"distill-{name}", self.candidates[0], step, partial(self._taught, plan))
            if self._good(found):
                self._forms(found)

    def _taught(self, plan: Plan) -> Any:
        student = build(plan)
        if plan.weights is None:
            whitening.begin(student.model, registry.find(plan.config.name).whitened, self.subject.data.part("train"))
        if student.pretrained:
            self.trainer.head(student)
        self.trainer.recover(student, times=NEW_TIMES, rate=STUDENT_RATE / (10 if student.pretrained else 1))
        return student.model

    # ---- candidates ----------------------------------------------------------------------------------------------

    def _good(self, found: Candidate) -> bool:
        return not found.failed and no_worse(found.lost, found.won, found.count, self.budget.max_drop)

    def _stands(self, right: NDArray[np.bool_]) -> bool:
        return no_worse(*self._lost_and_won(right), len(right), self.budget.max_drop)

    def _lost_and_won(self, right: NDArray[np.bool_]) -> tuple[int, int]:
        """Count the validation images that only the large model, and only the other, classifies correctly."""
        if self._of_large is None:
            self._of_large = self._answers_of(self.subject.model)
        return int((self._of_large & ~right).sum()), int((~self._of_large & right).sum())

    def _model(self, name: str) -> Any:
        """Return the Keras model of a candidate; one is held at a time besides the large one."""
        if name not in self._models:
            folder = self.store.folder(name)
            try:
                self._models = {"large": self.subject.model, name: load_model(folder / "model.keras")}
            except ModelError as error:
                raise ModelError(f"{error} Or remove {folder}: this candidate is then made again.") from error
        return self._models[name]

    def _attempt(
        self, name: str, parent: Candidate | None, step: Mapping[str, Any], make: Callable[[], Any]
    ) -> Candidate:
        """Create a float32 candidate, or read it if it exists."""
        found = self.store.get(name)
        if found is None:
            started = time.perf_counter()
            lineage = (*(parent.lineage if parent else ()), step)
            self.watcher.say(f"{name}: {_words(step)}")
            try:
                model = make()
            except DivergedError as error:
                found = Candidate(name, parent.name if parent else None, "float32", lineage, failed=str(error))
                self.store.put(found, None)
            else:
                self._models = {"large": self.subject.model, name: model}
                graph = onnx.convert(model) if parent is None else self._calibrated(model)
                found = self._keep(name, parent, "float32", lineage, model, graph, started)
        return self._add(found)

    def _calibrated(self, model: Any) -> bytes:
        """Refit the temperature of a new model; return its ONNX file."""
        if self.subject.calibrate is None:
            return onnx.convert(model)
        model.get_layer("temperature").scale = 1.0
        logits = parity.logits(self._predictor(onnx.convert(model)), self._validation)
        self.subject.calibrate(model, logits, self._validation.labels)
        return onnx.convert(model)

    def _add(self, found: Candidate) -> Candidate:
        self.candidates.append(found)
        self.watcher.say(
            f"{found.name}: {found.failed}" if found.failed else
            f"{found.name}: accuracy {found.accuracy:.4f}, {found.parameters:,} parameters, "
            f"{found.bytes / 1e6:.2f} MB, {found.latency:.2f} ms"
        )  # fmt: skip
        return found

    def _forms(self, base: Candidate) -> None:
        """Write a good candidate in the other precisions."""
        for precision, make in (("float16", self._narrowed), ("int8", self._integers)):
            if precision not in self.means:
                continue
            name = f"{base.name}-{precision}"
            found = self.store.get(name)
            if found is None:
                started = time.perf_counter()
                graph, step = make(onnx.convert(self._model(base.name)))
                lineage = (*base.lineage, {"step": precision, **step})
                found = self._keep(name, base, precision, lineage, self._model(base.name), graph, started)
            self._add(found)

    def _narrowed(self, graph: bytes) -> tuple[bytes, dict[str, Any]]:
        return onnx.narrowed(graph, "float16"), {"weights only": True}

    def _integers(self, graph: bytes) -> tuple[bytes, dict[str, Any]]:
        train = self.subject.data.part("train")
        some = _spread(train, CALIBRATION)
        batches = [some.take(slice(start, start + 32)) for start in range(0, len(some), 32)]
        calibration = quantize.calibrate(graph, batches, self.watcher.progress)
        file, keep, _ = calibration.until(
            lambda file: self._stands(self._answers(self._predictor(file))), batches[0], self.watcher.progress
        )
        return file, {"calibrated on": len(some), "left in float": list(keep)}

    def _keep(
        self, name: str, parent: Candidate | None, precision: str, lineage: tuple[Mapping[str, Any], ...],
        model: Any, graph: bytes, started: float,
    ) -> Candidate:  # fmt: skip
        """Measure a file, write its bundle and its record."""
        predictor = self._predictor(graph)
        answers = parity.probabilities(predictor, self._validation, task="validation", progress=self.watcher.progress)
        right = np.equal(answers.argmax(1), self._validation.labels)
        if name == "large":
            self._of_large = right
        accuracy = float(right.mean())
        pixels = self._validation.take(slice(0, 32))
        one = parity.speed(predictor, pixels, 3)[0] / 1e3
        calls = int(np.clip(SECONDS / max(one, 1e-6), 10, 200))
        median, p99, throughput = parity.speed(predictor, pixels, calls)
        facts = {
            "model": next((str(step["student"]) for step in lineage if "student" in step), self.subject.config.name),
            "temperature": 1 / float(model.get_layer("temperature").scale),
            "precision": precision,
            "lineage": lineage,
            "figures": {"validation": {"accuracy": accuracy, "count": len(answers)}},
        }
        made = self.subject.pack(model, graph, predictor, facts)
        found = Candidate(
            name, parent.name if parent else None, precision, lineage, accuracy, len(right),
            *self._lost_and_won(right), parameters(model), len(made.model), describe(model, name).multiply_adds,
            median, p99, throughput, time.perf_counter() - started,
        )  # fmt: skip
        own = precision == "float32" and name != "large"
        self.store.put(found, made, model.save if own else None)
        return found

    def _predictor(self, graph: bytes) -> OnnxPredictor:
        return OnnxPredictor(graph, self.subject.classes, self.subject.preprocess, self.subject.threads)

    def _answers(self, predictor: OnnxPredictor) -> NDArray[np.bool_]:
        """Return whether each validation image is classified correctly."""
        answers = parity.probabilities(predictor, self._validation)
        right: NDArray[np.bool_] = np.equal(answers.argmax(1), self._validation.labels)
        return right

    def _answers_of(self, model: Any) -> NDArray[np.bool_]:
        return self._answers(self._predictor(onnx.convert(model)))


def students(size: tuple[int, ...]) -> list[tuple[str, ModelConfig]]:
    """Return the student networks of the registry for images of `size`, smallest first."""
    if min(size) <= 64:
        deep = ("cifar10-deep", ModelConfig("cifar10-deep", weights="none", pooling="average", hidden=()))
        fast = ("fast-small", ModelConfig("fast-small", weights="none", alpha=0.5))
        return [deep, fast] if min(size) >= registry.find("fast-small").smallest else [deep]
    return [
        ("mobilenetv2", ModelConfig("mobilenetv2", alpha=0.35)),
        ("squeezenet", ModelConfig("squeezenet")),
    ]


def _spread(samples: Samples, count: int) -> Samples:
    return samples.at(np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(np.int64))


def _words(step: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in step.items())
