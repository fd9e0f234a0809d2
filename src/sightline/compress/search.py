"""The search for a smaller non-inferior model: cheap methods first, each candidate saved when it is ready.

1. Float16 weights and int8 of the original model, without training.
2. A smaller head: the head is trained first, the whole network only if that is not enough.
3. Pruning in rounds from the smallest good candidate. A round by batch-norm scales that fails is repeated by Taylor
   scores; after that, each failure halves the pruned fraction.
4. Distillation into a smaller network of the registry, if there is one.

A candidate is good if its validation accuracy is no worse than the original model's (`is_non_inferior`, with
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

from sightline.callbacks import Callback
from sightline.compress import channel_groups, prune, shrink_head
from sightline.compress.budget import Budget
from sightline.compress.finetune import MAX_EPOCH_FACTOR, FineTuner
from sightline.compress.noninferiority import is_non_inferior
from sightline.compress.search_dir import CompressionCandidate, SearchDir
from sightline.config import ModelConfig
from sightline.data.dataset import DecodedDataset
from sightline.data.types import Subset
from sightline.errors import DivergedError, ModelError
from sightline.export import keras_to_onnx, quantize
from sightline.inference import parity, runner
from sightline.inference.bundle import Bundle
from sightline.inference.runtimes.keras import load_model
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.models import pretrained, registry, whitening
from sightline.models.build import ModelSpec, Network, build_model, build_shapes_only
from sightline.models.describe import count_parameters, describe_model
from sightline.preprocessing import PreprocessingSpec
from sightline.training import checkpoints

METHODS = ("shrink-head", "prune", "distill", "int8", "float16")
PRUNED_FRACTION = 0.5  # fraction of the network to prune in a round
MAX_FAILURES = 3  # rounds that may fail, each with half the cut of the previous one
MAX_ROUNDS = 16
MAX_FINE_TUNES = 4  # maximum fine-tunings of a network until it is good
STUDENT_LEARNING_RATE = 1e-3
CALIBRATION_IMAGES = 128  # training images
LATENCY_SECONDS = 2.0  # of latency measurement for each candidate

Pack = Callable[[Any, bytes, OnnxPredictor, Mapping[str, Any]], Bundle]
"""Called with the Keras model, its ONNX file, that file's predictor and further fields of the manifest."""
Calibrate = Callable[[Any, NDArray[np.float32], NDArray[np.int32]], Any]
"""Called with a Keras model of temperature 1, its logits of the validation split [N, K] and the labels there [N]."""


@dataclass(frozen=True, slots=True)
class CompressionTask:
    """The model to compress: a Keras model, its configuration and data, and how it is packed.

    `calibrate` sets the temperature of each candidate's own weights; None where the run has none.
    """

    model: Any
    config: ModelConfig
    seed: int
    classes: tuple[str, ...]
    preprocess: PreprocessingSpec
    data: DecodedDataset
    threads: int
    lineage: Mapping[str, Any]
    pack: Pack
    calibrate: Calibrate | None


class CompressionSearch:
    """A search; `candidates` grows as it runs."""

    def __init__(
        self,
        subject: CompressionTask,
        trainer: FineTuner,
        store: SearchDir,
        budget: Budget,
        methods: Sequence[str],
        callback: Callback,
    ) -> None:
        self.subject, self.trainer, self.store, self.budget = subject, trainer, store, budget
        self.methods, self.callback = frozenset(methods), callback
        self.candidates: list[CompressionCandidate] = []
        self._models: dict[str, Any] = {"original": subject.model}
        self._validation = subject.data.subset("validation")
        self._original_correct: NDArray[np.bool_] | None = None

    def run(self) -> tuple[CompressionCandidate, ...]:
        """Create all candidates, or read those that exist; the first is the original model itself."""
        original = self._get_or_create("original", None, self.subject.lineage, lambda: self.subject.model)
        if original.failed:
            raise DivergedError(f"The original model cannot be used: {original.failed}.")
        self._write_precisions(original)
        base = self._shrink_head(original) if "shrink-head" in self.methods else original
        if "prune" in self.methods:
            base = self._prune_rounds(base)
        if "distill" in self.methods:
            self._distill_students(base)
        return tuple(self.candidates)

    def best_candidate(self) -> CompressionCandidate | None:
        """Return the smallest file that meets the budget."""
        original_accuracy = self.candidates[0].accuracy
        fit = [c for c in self.candidates if not c.failed and not self.budget.exceeded_limits(c, original_accuracy)]
        return min(fit, key=lambda c: (c.bytes, c.parameters, c.latency), default=None)

    def nearest_candidate(self) -> tuple[CompressionCandidate, list[str]]:
        """Return the candidate that exceeds its limits least, relative to them, and the limits that it misses."""
        original_accuracy = self.candidates[0].accuracy
        ranked = min((c for c in self.candidates if not c.failed), key=self._excess)
        return ranked, self.budget.exceeded_limits(ranked, original_accuracy)

    def _excess(self, candidate: CompressionCandidate) -> float:
        budget, original_accuracy = self.budget, self.candidates[0].accuracy
        limits = (
            (candidate.bytes, budget.max_bytes), (candidate.latency, budget.max_latency),
            (candidate.parameters, budget.max_parameters),
        )  # fmt: skip
        excess = [value / max(most, 1e-9) - 1 for value, most in limits if most is not None]
        drop = 0.0 if self._is_good(candidate) else original_accuracy - candidate.accuracy - budget.max_drop
        return max([*excess, 10 * drop, 0.0])  # 10 points weigh as twice the size

    # ---- means ---------------------------------------------------------------------------------------------------

    def _shrink_head(self, original: CompressionCandidate) -> CompressionCandidate:
        for number, config in enumerate(shrink_head.list_smaller_heads(self.subject.config), 1):
            name = "shrink-head" if number == 1 else f"shrink-head-{number}"
            step = {"step": "shrink-head", "pooling": config.pooling, "hidden": list(config.hidden_units or ())}
            candidate = self._get_or_create(name, original, step, partial(self._train_new_head, config))
            if self._is_good(candidate):
                self._write_precisions(candidate)
                return candidate
        return original

    def _train_new_head(self, config: ModelConfig) -> Any:
        network = shrink_head.rebuild_with_head(self.subject.model, config, self.subject.seed)
        trained = Network(network.model, network.backbone, self.trainer.pretrained)
        self.trainer.train_head(trained)
        if not self._is_non_inferior(self._model_correct(network.model)):
            self._fine_tune(trained)
        return network.model

    def _fine_tune(self, network: Network) -> None:
        """Fine-tune until `network` is good, at most `MAX_FINE_TUNES` times, each from the best state so far.

        It stops early if further gains as large as the last would not be enough: fine-tuning takes the most time.
        """
        correct, arrays = self._model_correct(network.model), checkpoints.copy_variables(network.model)
        floor = self.candidates[0].accuracy - self.budget.max_drop - 1e-9
        for remaining in reversed(range(MAX_FINE_TUNES if self.trainer.epochs else 0)):
            before = best = float(correct.mean())
            self.trainer.fine_tune(network)
            new_correct = self._model_correct(network.model)
            if new_correct.mean() > best:
                best, correct, arrays = (
                    float(new_correct.mean()),
                    new_correct,
                    checkpoints.copy_variables(network.model),
                )
            else:
                checkpoints.restore_variables(network.model, arrays)
            if self._is_non_inferior(correct) or best + remaining * (best - before) < floor:
                return

    def _prune_rounds(self, base: CompressionCandidate) -> CompressionCandidate:
        cut, failures, importance = PRUNED_FRACTION, 0, "scale"
        for number in range(1, MAX_ROUNDS + 1):
            step = {"step": "prune", "round": number, "importance": importance, "cut": cut}
            candidate = self._get_or_create(f"prune-{number}", base, step, partial(self._prune, base, importance, cut))
            if self._is_good(candidate) and candidate.parameters < base.parameters:
                base = candidate
                self._write_precisions(candidate)
            elif importance == "taylor":
                failures += 1
                cut /= 2
                if failures == MAX_FAILURES or candidate.parameters == base.parameters:
                    break
            importance = "taylor"  # also where scales have failed: first-order terms may do with the same cut
        return base

    def _prune(self, base: CompressionCandidate, importance: str, cut: float) -> Any:
        model = self._load_model(base.name)
        groups = channel_groups.trace_channels(model)
        taylor = importance == "taylor"
        scores = self.trainer.taylor_scores(model, groups) if taylor else prune.score_by_scale(groups)
        small = prune.prune(model, groups, prune.choose_groups(groups, scores, 1 - cut, weigh=taylor))
        self._fine_tune(self.trainer.make_network(small))
        return small

    def _distill_students(self, base: CompressionCandidate) -> None:
        for name, config in list_students(self._validation.pixels.shape[1:3]):
            if (name, config.alpha) == (self.subject.config.name, self.subject.config.alpha):
                continue
            height, width, depth = self._validation.pixels.shape[1:]
            entry = registry.get_entry(name)
            start = pretrained.find_cached_file(entry, config.alpha, height if height == width else 0)
            plan = ModelSpec(config, height, width, depth, len(self.subject.classes), self.subject.seed, weights=start)
            if count_parameters(build_shapes_only(plan).model) >= base.parameters:
                continue
            step = {"step": "distill", "student": name, "pretrained": start is not None}
            candidate = self._get_or_create(
                f"distill-{name}", self.candidates[0], step, partial(self._train_student, plan)
            )
            if self._is_good(candidate):
                self._write_precisions(candidate)

    def _train_student(self, plan: ModelSpec) -> Any:
        student = build_model(plan)
        if plan.weights is None:
            layer, train = registry.get_entry(plan.config.name).whitening_layer, self.subject.data.subset("train")
            whitening.init_whitening(student.model, layer, len(train), train.take)
        if student.pretrained:
            self.trainer.train_head(student)
        self.trainer.fine_tune(
            student, epoch_factor=MAX_EPOCH_FACTOR, rate=STUDENT_LEARNING_RATE / (10 if student.pretrained else 1)
        )
        return student.model

    # ---- candidates ----------------------------------------------------------------------------------------------

    def _is_good(self, candidate: CompressionCandidate) -> bool:
        return not candidate.failed and is_non_inferior(
            candidate.only_original_correct, candidate.only_this_correct, candidate.count, self.budget.max_drop
        )

    def _is_non_inferior(self, correct: NDArray[np.bool_]) -> bool:
        return is_non_inferior(*self._count_disagreements(correct), len(correct), self.budget.max_drop)

    def _count_disagreements(self, correct: NDArray[np.bool_]) -> tuple[int, int]:
        """Count the validation images that only the original model, and only the other, classifies correctly."""
        if self._original_correct is None:
            self._original_correct = self._model_correct(self.subject.model)
        return int((self._original_correct & ~correct).sum()), int((~self._original_correct & correct).sum())

    def _load_model(self, name: str) -> Any:
        """Return the Keras model of a candidate; one is held at a time besides the original one."""
        if name not in self._models:
            folder = self.store.folder(name)
            try:
                self._models = {"original": self.subject.model, name: load_model(folder / "model.keras")}
            except ModelError as error:
                raise ModelError(f"{error} Or remove {folder}: this candidate is then made again.") from error
        return self._models[name]

    def _get_or_create(
        self, name: str, parent: CompressionCandidate | None, step: Mapping[str, Any], make: Callable[[], Any]
    ) -> CompressionCandidate:
        """Create a float32 candidate, or read it if it exists."""
        candidate = self.store.read_candidate(name)
        if candidate is None:
            started = time.perf_counter()
            lineage = (*(parent.lineage if parent else ()), step)
            self.callback.on_message(f"{name}: {_describe_step(step)}")
            try:
                model = make()
            except DivergedError as error:
                candidate = CompressionCandidate(
                    name, parent.name if parent else None, "float32", lineage, failed=str(error)
                )
                self.store.write_candidate(candidate, None)
            else:
                self._models = {"original": self.subject.model, name: model}
                graph = keras_to_onnx.convert_model(model) if parent is None else self._calibrate(model)
                candidate = self._save_candidate(name, parent, "float32", lineage, model, graph, started)
        return self._add(candidate)

    def _calibrate(self, model: Any) -> bytes:
        """Refit the temperature of a new model; return its ONNX file."""
        if self.subject.calibrate is None:
            return keras_to_onnx.convert_model(model)
        model.get_layer("temperature").scale = 1.0
        logits = runner.predict_outputs(
            self._make_predictor(keras_to_onnx.convert_model(model)), self._validation
        ).logits
        self.subject.calibrate(model, logits, self._validation.labels)
        return keras_to_onnx.convert_model(model)

    def _add(self, candidate: CompressionCandidate) -> CompressionCandidate:
        self.candidates.append(candidate)
        self.callback.on_message(
            f"{candidate.name}: {candidate.failed}" if candidate.failed else
            f"{candidate.name}: accuracy {candidate.accuracy:.4f}, {candidate.parameters:,} parameters, "
            f"{candidate.bytes / 1e6:.2f} MB, {candidate.latency:.2f} ms"
        )  # fmt: skip
        return candidate

    def _write_precisions(self, base: CompressionCandidate) -> None:
        """Write a good candidate in the other precisions."""
        for precision, make in (("float16", self._to_float16), ("int8", self._to_int8)):
            if precision not in self.methods:
                continue
            name = f"{base.name}-{precision}"
            candidate = self.store.read_candidate(name)
            if candidate is None:
                started = time.perf_counter()
                graph, step = make(keras_to_onnx.convert_model(self._load_model(base.name)))
                lineage = (*base.lineage, {"step": precision, **step})
                candidate = self._save_candidate(
                    name, base, precision, lineage, self._load_model(base.name), graph, started
                )
            self._add(candidate)

    def _to_float16(self, graph: bytes) -> tuple[bytes, dict[str, Any]]:
        return keras_to_onnx.cast_weights(graph, "float16"), {"weights only": True}

    def _to_int8(self, graph: bytes) -> tuple[bytes, dict[str, Any]]:
        train = self.subject.data.subset("train")
        sampled = _sample_evenly(train, CALIBRATION_IMAGES)
        batches = [sampled.take(slice(start, start + 32)) for start in range(0, len(sampled), 32)]
        calibration = quantize.calibrate_graph(graph, batches, self.callback.on_progress)
        file, keep, _ = calibration.quantize_until_accepted(
            lambda file: self._is_non_inferior(self._predict_correct(self._make_predictor(file))),
            batches[0],
            self.callback.on_progress,
        )
        return file, {"calibrated on": len(sampled), "left in float": list(keep)}

    def _save_candidate(
        self, name: str, parent: CompressionCandidate | None, precision: str, lineage: tuple[Mapping[str, Any], ...],
        model: Any, graph: bytes, started: float,
    ) -> CompressionCandidate:  # fmt: skip
        """Measure a file, write its bundle and its record."""
        predictor = self._make_predictor(graph)
        probabilities = runner.predict_probabilities(
            predictor, self._validation, task="validation", progress=self.callback.on_progress
        )
        correct = np.equal(probabilities.argmax(1), self._validation.labels)
        if name == "original":
            self._original_correct = correct
        accuracy = float(correct.mean())
        pixels = self._validation.take(slice(0, 32))
        one = parity.measure_speed(predictor, pixels, 3)[0] / 1e3
        calls = int(np.clip(LATENCY_SECONDS / max(one, 1e-6), 10, 200))
        median, p99, throughput = parity.measure_speed(predictor, pixels, calls)
        facts = {
            "model": next((str(step["student"]) for step in lineage if "student" in step), self.subject.config.name),
            "temperature": 1 / float(model.get_layer("temperature").scale),
            "precision": precision,
            "lineage": lineage,
            "metrics": {"validation": {"accuracy": accuracy, "count": len(probabilities)}},
        }
        packed = self.subject.pack(model, graph, predictor, facts)
        candidate = CompressionCandidate(
            name, parent.name if parent else None, precision, lineage, accuracy, len(correct),
            *self._count_disagreements(correct), count_parameters(model), len(packed.model), describe_model(model,
            name).multiply_adds,
            median, p99, throughput, time.perf_counter() - started,
        )  # fmt: skip
        has_own_weights = precision == "float32" and name != "original"
        self.store.write_candidate(candidate, packed, model.save if has_own_weights else None)
        return candidate

    def _make_predictor(self, graph: bytes) -> OnnxPredictor:
        return OnnxPredictor(graph, self.subject.classes, self.subject.preprocess, self.subject.threads)

    def _predict_correct(self, predictor: OnnxPredictor) -> NDArray[np.bool_]:
        """Return whether each validation image is classified correctly."""
        probabilities = runner.predict_probabilities(predictor, self._validation)
        correct: NDArray[np.bool_] = np.equal(probabilities.argmax(1), self._validation.labels)
        return correct

    def _model_correct(self, model: Any) -> NDArray[np.bool_]:
        return self._predict_correct(self._make_predictor(keras_to_onnx.convert_model(model)))


def list_students(size: tuple[int, ...]) -> list[tuple[str, ModelConfig]]:
    """Return the student networks of the registry for images of `size`, smallest first."""
    if min(size) <= 64:
        deep = ("cifar10-deep", ModelConfig("cifar10-deep", weights="none", pooling="average", hidden_units=()))
        fast = ("fast-small", ModelConfig("fast-small", weights="none", alpha=0.5))
        return [deep, fast] if min(size) >= registry.get_entry("fast-small").min_input_size else [deep]
    return [
        ("mobilenetv2", ModelConfig("mobilenetv2", alpha=0.35)),
        ("squeezenet", ModelConfig("squeezenet")),
    ]


def _sample_evenly(samples: Subset, count: int) -> Subset:
    return samples.select(np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(np.int64))


def _describe_step(step: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in step.items())
