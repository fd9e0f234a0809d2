"""Evaluate a classifier whose classes are the leaves of a tree: accuracy at each level, and precision at each depth.

Source of the hierarchical precision, recall and F1: Silla and Freitas, "A survey of hierarchical classification across
different application domains", 2011.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from sightline.data.class_tree import LEAST_PROBABILITY, ClassTree, build_tree
from sightline.evaluation import bootstrap, ood, report, selective
from sightline.evaluation.bootstrap import EACH_IMAGE, Resampling, count_groups
from sightline.evaluation.report import DecisionMetrics, EvaluationReport
from sightline.evaluation.results import EvaluationResult, Metric
from sightline.evaluation.selective import SelectiveResult, Threshold
from sightline.inference.decisions import predict_nodes
from sightline.inference.ood import compute_scores
from sightline.inference.predictor import ModelOutputs
from sightline.inference.results import NO_THRESHOLDS, ThresholdRequest, Thresholds
from sightline.intervals import Interval
from sightline.tasks.protocol import EvaluationInputs

METRICS = ("hierarchical_precision", "hierarchical_recall", "hierarchical_f1")


@dataclass(frozen=True, slots=True)
class LevelMetrics:
    """The accuracy at a level of the tree, counted from 1 at the top, and the number of `classes` there.

    The class predicted there is the one with the highest sum of probabilities below it. A class that ends at a higher
    level counts as itself.
    """

    level: int
    classes: int
    accuracy: float
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class DepthMetrics:
    """The images whose predicted class is at depth `depth`; depth 0 is for images without a predicted class.

    `fraction` is the fraction of all images, `precision` the fraction of the predicted classes that are the true class
    or above it; None if there are none.
    """

    depth: int
    count: int
    fraction: float
    precision: float | None
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class HierarchyMetrics:
    """The `levels` of the tree from the top, and the `depths` of the predicted classes, from 0."""

    levels: tuple[LevelMetrics, ...]
    depths: tuple[DepthMetrics, ...]


@dataclass(frozen=True, slots=True, repr=False)
class HierarchyResult(EvaluationResult):
    """The metrics of the leaves and of the tree, see `compute_metrics`."""

    headlines = ("top_1", "accuracy_level_1", "hierarchical_f1")


@dataclass(frozen=True, slots=True, repr=False)
class HierarchyReport(EvaluationReport):
    """The evaluation of a hierarchical classifier; thresholds and decisions apply to the predicted nodes."""

    hierarchy: HierarchyMetrics = field(kw_only=True)


def build_report(inputs: EvaluationInputs) -> HierarchyReport:
    """Return the evaluation as `evaluation.report.build_report` does, with nodes of the tree predicted."""
    outputs, labeled, thresholds = inputs.outputs, inputs.labeled, inputs.thresholds
    tree, labels = build_tree(inputs.classes), outputs.labels
    leaf_report = report.build_report(replace(inputs, thresholds=None, threshold_request=NO_THRESHOLDS))
    values = {f.name: getattr(leaf_report, f.name) for f in fields(leaf_report)}
    sums = tree.sum_probabilities(outputs.outputs.probabilities)
    resampling = Resampling(groups=bootstrap.number_groups(labeled.subset.paths, labeled.groups))
    levels = tuple(_evaluate_level(tree, sums, labels, level, resampling) for level in range(1, tree.levels + 1))
    scores = (
        None if thresholds is None else compute_scores(thresholds, outputs.outputs.logits, outputs.outputs.features)
    )
    nodes = predict_nodes(outputs.outputs.probabilities, scores, tree, thresholds)
    correct = tree.are_above(nodes, labels)
    evaluation = {f.name: getattr(leaf_report.evaluation, f.name) for f in fields(leaf_report.evaluation)}
    metrics = compute_metrics(tree, outputs.outputs.probabilities.argmax(1), labels, resampling)
    by_level = {
        f"accuracy_level_{level.level}": Metric(
            level.accuracy, level.interval, "" if level.interval else bootstrap.ONE_GROUP_NOTE
        )
        for level in levels
    }
    values |= {
        "evaluation": HierarchyResult(**evaluation | {"metrics": evaluation["metrics"] | metrics | by_level}),
        "thresholds": thresholds,
        "threshold": _choose_requested(tree, inputs.validation_outputs, inputs.threshold_request),
        "selective": None
        if thresholds is None
        else _evaluate_decisions(nodes, correct, thresholds, resampling, fitted=inputs.are_fitted),
        "selective_check": _check_usual_targets(tree, inputs.validation_outputs, outputs, resampling),
    }
    depths = np.where(nodes < 0, 0, tree.depths[nodes])
    at_depths = tuple(_evaluate_depth(depths == depth, correct, depth, resampling) for depth in range(tree.levels + 1))
    return HierarchyReport(**values, hierarchy=HierarchyMetrics(levels, at_depths))


def fit_thresholds(
    classes: tuple[str, ...], held_out: ModelOutputs, request: ThresholdRequest, old: Thresholds | None
) -> Thresholds:
    """Fit the requested threshold for nodes on validation images; others stay as in `old`."""
    threshold = _choose_requested(build_tree(classes), held_out, request)
    new = ood.fit_detection(replace(old or Thresholds(0), count=len(held_out.labels)), held_out, "energy")
    if threshold is None:
        return new
    return replace(
        new,
        target_precision=threshold.target,
        confidence=threshold.confidence,
        selective_coverage=threshold.coverage,
    )


def choose_threshold(
    tree: ClassTree,
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int32],
    target_precision: float,
    *,
    conservative: bool = True,
    groups: NDArray[np.int64] | None = None,
) -> Threshold:
    """Return the smallest threshold of node probabilities with at least the precision `target_precision`.

    A node is correct if it is the true class or above it. Lower thresholds predict more nodes, and deeper ones.
    `probabilities` are float32 [N, K], `labels` int32 [N]; the test, and its treatment of `groups` int64 [N], are
    described in `selective.choose_threshold`.
    """
    sums = tree.sum_probabilities(probabilities)
    images, nodes = np.nonzero(sums >= LEAST_PROBABILITY)  # for each image the nodes of one path, from the top
    confidences, is_first = sums[images, nodes], tree.depths[nodes] == 1
    correct = tree.are_above(nodes, labels[images]).astype(np.int64)
    gains = correct - np.where(is_first, 0, np.append(0, correct)[:-1])
    order = np.lexsort((tree.depths[nodes], -confidences))
    ends = selective.find_group_ends(confidences[order])
    return selective.choose_from_counts(
        confidences[order][ends], np.cumsum(is_first[order])[ends], np.cumsum(gains[order])[ends], len(labels),
        target_precision, conservative=conservative, num_groups=count_groups(groups),
    )  # fmt: skip


def compute_metrics(
    tree: ClassTree, predicted: NDArray[np.integer], labels: NDArray[np.integer], resampling: Resampling = EACH_IMAGE
) -> dict[str, Metric]:
    """Return hierarchical precision, recall and F1 of predicted classes, indices [N], against `labels` [N].

    Each image counts all nodes on the path to its class: precision is the fraction of the predicted nodes that are on
    the true path, recall that of the true nodes that are predicted.
    """
    if not len(labels):
        return {name: Metric(None, note="there are no images") for name in METRICS}
    sizes = tree.depths[tree.ancestors[:, -1]]
    same = tree.ancestors[predicted] == tree.ancestors[labels]
    common = (same & (np.arange(tree.levels) < sizes[labels][:, None])).sum(1)
    columns = np.stack([common, sizes[predicted], sizes[labels]], 1).astype(np.float64)
    value = _compute_rates(columns.sum(0, keepdims=True))[0]
    resampled = _compute_rates(resampling.resample_means(columns, "hierarchy"))
    return {
        name: resampling.make_metric(float(v), rates, len(labels))
        for name, v, rates in zip(METRICS, value, resampled.T, strict=True)
    }


def _compute_rates(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return precision, recall and F1 [R, 3] from the sums [R, 3] of common, predicted and true nodes."""
    common, predicted, true = sums.T
    return np.stack([common / predicted, common / true, 2 * common / (predicted + true)], 1)


def _evaluate_level(
    tree: ClassTree, sums: NDArray[np.float64], labels: NDArray[np.integer], level: int, resampling: Resampling
) -> LevelMetrics:
    path = tree.ancestors[:, level - 1]
    nodes = np.unique(path)
    metric = resampling.estimate_fraction(nodes[sums[:, nodes].argmax(1)] == path[labels])
    return LevelMetrics(level, len(nodes), metric.value or 0.0, metric.interval)


def _evaluate_depth(
    predicted: NDArray[np.bool_], correct: NDArray[np.bool_], depth: int, resampling: Resampling
) -> DepthMetrics:
    count = int(predicted.sum())
    fraction = count / max(len(predicted), 1)
    if not depth or not count:
        return DepthMetrics(depth, count, fraction, None, None)
    (interval,) = resampling.estimate_proportions(correct[:, None], predicted[:, None])
    return DepthMetrics(depth, count, fraction, int(correct[predicted].sum()) / count, interval)


def _evaluate_decisions(
    nodes: NDArray[np.int64],
    correct: NDArray[np.bool_],
    thresholds: Thresholds,
    resampling: Resampling,
    *,
    fitted: bool,
) -> DecisionMetrics:
    """Return how often a node is predicted and how precisely; `fitted`: the threshold was chosen on these images."""
    target = thresholds.target_precision
    result = selective.evaluate_threshold(nodes >= 0, correct, target, resampling)
    return DecisionMetrics(
        result.coverage, 0.0, 1 - result.coverage, result.precision, result.interval, len(nodes), target,
        result.lower_bound,
        None if fitted or target is None else result.met,
    )  # fmt: skip


def _choose_requested(tree: ClassTree, held_out: ModelOutputs | None, request: ThresholdRequest) -> Threshold | None:
    if held_out is None or request.target_precision is None:
        return None
    p, labels, target = held_out.outputs.probabilities, held_out.labels, request.target_precision
    return choose_threshold(tree, p, labels, target, conservative=request.conservative, groups=held_out.groups)


def _check_usual_targets(
    tree: ClassTree, held_out: ModelOutputs | None, evaluated: ModelOutputs, resampling: Resampling
) -> SelectiveResult | None:
    """Choose a threshold on validation for the strictest usual target and evaluate it; None on the same images."""
    if held_out is None or held_out is evaluated:
        return None
    p, labels = held_out.outputs.probabilities, held_out.labels
    thresholds = [choose_threshold(tree, p, labels, target) for target in selective.TARGETS]
    threshold = next((t for t in thresholds if t.confidence is not None), thresholds[-1])
    if threshold.confidence is None:
        return SelectiveResult(threshold, None)
    nodes = tree.find_deepest_nodes(tree.sum_probabilities(evaluated.outputs.probabilities), threshold.confidence)
    correct = tree.are_above(nodes, evaluated.labels)
    return SelectiveResult(threshold, selective.evaluate_threshold(nodes >= 0, correct, threshold.target, resampling))
