"""The search for a smaller non-inferior model: cheap methods first, each candidate saved as soon as it is ready.

1. The original model with float16 weights and in int8, without training.
2. A smaller head: the head is trained first, the whole network only if that is not enough.
3. Pruning in rounds from the smallest good candidate. A failed round by batch-norm scales is repeated with Taylor
   scores; after that, each failure halves the pruned fraction.
4. Distillation into a smaller network from the registry, if there is one.

A candidate is good if it is non-inferior to the original model on the validation split (see `noninferiority`), with
`Budget.max_drop`. It is written in every requested precision. Decisions depend only on the records, so a resumed search
takes the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sightline.callbacks import Callback
from sightline.compress import channel_groups, prune, shrink_head
from sightline.compress.budget import Budget
from sightline.compress.candidates import ORIGINAL, CandidateFactory, CompressionTask
from sightline.compress.finetune import MAX_EPOCH_FACTOR, FineTuner
from sightline.compress.search_dir import CompressionCandidate, SearchDir
from sightline.config import ModelConfig
from sightline.errors import DivergedError, ModelError
from sightline.models import initializers, pretrained, registry
from sightline.models.build import ModelSpec, Network, build_model, build_shapes_only
from sightline.models.describe import count_parameters
from sightline.tasks.protocol import find_task

METHODS = ("shrink-head", "prune", "distill", "int8", "float16")
PRUNED_FRACTION = 0.5  # fraction of the network to prune in a round
MAX_FAILURES = 3  # failed rounds before pruning ends; each halves the fraction
MAX_ROUNDS = 16
MAX_FINE_TUNES = 4  # limit on fine-tunings of a network until it is good
STUDENT_LEARNING_RATE = 1e-3


class CompressionSearch:
    """A search; `candidates` grows as it runs."""

    def __init__(
        self,
        task: CompressionTask,
        tuner: FineTuner,
        search_dir: SearchDir,
        budget: Budget,
        methods: Sequence[str],
        callback: Callback,
    ) -> None:
        self.budget = budget
        self._task, self._tuner, self._methods = task, tuner, frozenset(methods)
        self._callback = callback
        self._factory = CandidateFactory(task, search_dir, budget.max_drop, callback)

    @property
    def candidates(self) -> tuple[CompressionCandidate, ...]:
        """All candidates so far; the first is the original model itself."""
        return tuple(self._factory.candidates)

    def run(self) -> tuple[CompressionCandidate, ...]:
        """Create all candidates, or read existing ones."""
        original = self._factory.create(ORIGINAL, None, self._task.lineage, lambda _: self._task.model)
        if original.failed:
            raise DivergedError(f"The original model cannot be used: {original.failed}.")
        self._create_precisions(original)
        base = self._shrink_head(original) if "shrink-head" in self._methods else original
        if "prune" in self._methods:
            base = self._prune_rounds(base)
        if "distill" in self._methods:
            self._distill_students(base)
        return self.candidates

    def best_candidate(self) -> CompressionCandidate | None:
        """Return the candidate with the smallest file among those that meet the budget."""
        meeting = [c for c in self.candidates if not c.failed and not self.budget.exceeded_limits(c)]
        return min(meeting, key=lambda c: (c.bytes, c.parameters, c.latency), default=None)

    def nearest_candidate(self) -> tuple[CompressionCandidate, list[str]]:
        """Return the candidate with the smallest excess relative to the limits, and the limits that it exceeds."""
        nearest = min((c for c in self.candidates if not c.failed), key=self.budget.compute_excess)
        return nearest, self.budget.exceeded_limits(nearest)

    def _create_precisions(self, base: CompressionCandidate) -> None:
        """Create a good candidate in the other precisions."""
        if "float16" in self._methods:
            self._factory.create_float16(base)
        if "int8" in self._methods:
            self._factory.create_int8(base)

    def _shrink_head(self, original: CompressionCandidate) -> CompressionCandidate:
        """Return the first good candidate with a smaller head, else the original."""
        for number, config in enumerate(shrink_head.list_smaller_heads(self._task.config), 1):
            name = "shrink-head" if number == 1 else f"shrink-head-{number}"
            step = {"step": "shrink-head", "pooling": config.pooling, "hidden": list(config.hidden_units or ())}
            candidate = self._factory.create(name, original, step, partial(self._train_new_head, config))
            if self._factory.is_good(candidate):
                self._create_precisions(candidate)
                return candidate
        return original

    def _train_new_head(self, config: ModelConfig, folder: Path) -> Any:
        network = shrink_head.rebuild_with_head(self._task.model, config, self._task.seed)
        network = Network(network.model, network.backbone, self._tuner.pretrained)
        self._tuner.train_head(network, folder / "head")
        if not self._factory.evaluate(network.model).is_non_inferior(self.budget.max_drop):
            self._fine_tune(network, folder)
        return network.model

    def _fine_tune(self, network: Network, folder: Path) -> None:
        """Fine-tune until `network` is good, at most `MAX_FINE_TUNES` times.

        It stops early if further gains as large as the last one would not be enough, as fine-tuning takes the most
        time. The last weights are kept, not the best on validation: the best of several look better than they are.
        """
        score = self._factory.evaluate(network.model).compressed_score
        min_score = self.candidates[0].comparison.compressed_score - self.budget.max_drop - 1e-9
        for number in range(1, MAX_FINE_TUNES + 1 if self._tuner.epochs else 1):
            previous_score = score
            self._tuner.fine_tune(network, folder / f"fine-tune-{number}")
            comparison = self._factory.evaluate(network.model)
            score = comparison.compressed_score
            reachable = score + (MAX_FINE_TUNES - number) * max(score - previous_score, 0.0)
            if comparison.is_non_inferior(self.budget.max_drop) or reachable < min_score:
                return

    def _prune_rounds(self, base: CompressionCandidate) -> CompressionCandidate:
        """Prune in rounds; return the last good candidate.

        Raises `ModelError` if nothing can be pruned and no other method is left.
        """
        model = self._factory.load_model(base.name)
        try:
            channel_groups.trace_channels(model).check_removable()
        except ModelError as error:
            if self._methods == {"prune"}:
                raise
            self._callback.on_message(f"prune is left out: {error}")
            return base
        fraction, failures, importance = PRUNED_FRACTION, 0, "scale"
        for number in range(1, MAX_ROUNDS + 1):
            step = {"step": "prune", "round": number, "importance": importance, "cut": fraction}
            make = partial(self._prune, base, importance, fraction)
            candidate = self._factory.create(f"prune-{number}", base, step, make)
            if self._factory.is_good(candidate) and candidate.parameters < base.parameters:
                base = candidate
                self._create_precisions(candidate)
            elif importance == "taylor":
                failures += 1
                fraction /= 2
                if failures == MAX_FAILURES or candidate.parameters == base.parameters:
                    break
            importance = "taylor"  # even if scales have failed: Taylor scores may succeed at the same fraction
        return base

    def _prune(self, base: CompressionCandidate, importance: str, fraction: float, folder: Path) -> Any:
        model = self._factory.load_model(base.name)
        groups = channel_groups.trace_channels(model)
        taylor = importance == "taylor"
        scores = self._tuner.score_by_taylor(model, groups) if taylor else prune.score_by_scale(groups)
        pruned = prune.prune(model, groups, prune.choose_groups(groups, scores, 1 - fraction, weigh=taylor))
        self._fine_tune(self._tuner.make_network(pruned), folder)
        return pruned

    def _distill_students(self, base: CompressionCandidate) -> None:
        """Distill the original model into each student network that is smaller than `base`."""
        height, width, channels = self._factory.validation.pixels.shape[1:]
        task = self._task.config.task
        for name, student in list_students((height, width)):
            config = replace(student, task=task)
            if (name, config.alpha) == (self._task.config.name, self._task.config.alpha):
                continue
            weights = pretrained.find_cached_file(
                registry.get_entry(name), config.alpha, height if height == width else 0
            )
            spec = ModelSpec(
                config, height, width, channels, len(self._task.classes), self._task.seed, weights=weights,
                activation=find_task(task).activation,
            )  # fmt: skip
            if count_parameters(build_shapes_only(spec).model) >= base.parameters:
                continue
            step = {"step": "distill", "student": name, "pretrained": weights is not None}
            make = partial(self._train_student, spec)
            candidate = self._factory.create(f"distill-{name}", self.candidates[0], step, make)
            if self._factory.is_good(candidate):
                self._create_precisions(candidate)

    def _train_student(self, spec: ModelSpec, folder: Path) -> Any:
        student = build_model(spec)
        if spec.weights is None:
            layer, train = registry.get_entry(spec.config.name).whitening_layer, self._task.data.subset("train")
            initializers.init_whitening(student.model, layer, len(train), train.take)
        if student.pretrained:
            self._tuner.train_head(student, folder / "head")
        rate = STUDENT_LEARNING_RATE / (10 if student.pretrained else 1)
        self._tuner.fine_tune(student, folder / "fine-tune-1", epoch_factor=MAX_EPOCH_FACTOR, rate=rate)
        return student.model


def list_students(size: tuple[int, int]) -> list[tuple[str, ModelConfig]]:
    """Return the student networks in the registry for images of `size` (height, width), smallest first."""
    if min(size) <= 64:
        deep = ("cifar10-deep", ModelConfig("cifar10-deep", weights="none", pooling="average", hidden_units=()))
        fast = ("fast-small", ModelConfig("fast-small", weights="none", alpha=0.5))
        return [deep, fast] if min(size) >= registry.get_entry("fast-small").min_input_size else [deep]
    return [
        ("mobilenetv2", ModelConfig("mobilenetv2", alpha=0.35)),
        ("squeezenet", ModelConfig("squeezenet")),
        ("efficientnet-lite0", ModelConfig("efficientnet-lite0")),
    ]
