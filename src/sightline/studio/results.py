"""The results page of a run: the confusion matrix, and the metrics if the model abstains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from sightline import metrics
from sightline.data.types import Split
from sightline.evaluation.bootstrap import Resampling, count_groups
from sightline.evaluation.ordinal import compute_ordinal_metrics
from sightline.evaluation.results import LabeledPredictions, Metric
from sightline.evaluation.scoring import add_group_intervals, compute_class_metrics, find_accuracy_interval
from sightline.evaluation.selective import compute_risk_coverage
from sightline.evaluation.slices import SliceMetrics, evaluate_slices
from sightline.studio.features import RunModel
from sightline.studio.library import Library
from sightline.studio.pages import Pages, StrictJSONResponse, choose_block
from sightline.studio.query import parse_fraction
from sightline.tasks.protocol import find_task

MAX_CLASSES = 40  # in a confusion matrix; with more, only those with the most errors
MAX_PAIRS = 100
MAX_SLICES = 20
SHADES = 8  # for the cells of a matrix
LEAST_ACCEPTED = 20  # images per point of the curve: with fewer, a single error would change it too much
REPORTED = ("test", "validation", "train")  # the split to show first

Results = TypeVar("Results")


class SplitResults:
    """A run's predictions for the images of one split: counts over all images, and over those above a confidence.

    Intervals are computed as in `sightline.evaluation.scoring.compute_evaluation`.
    """

    def __init__(self, predictions: LabeledPredictions, groups: NDArray[np.int64] | None = None) -> None:
        """`groups` [N] are the images' group numbers, from 0; None if each image is on its own."""
        self._resampling = Resampling(groups=groups)
        self.classes = predictions.classes
        self._slice_masks = predictions.slice_masks
        self._labels = predictions.labels
        self._predicted = predictions.probabilities.argmax(1)
        self._confidences: NDArray[np.float32] = predictions.probabilities.max(1)
        self._support = np.bincount(self._labels, minlength=len(self.classes))

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """The number of images by true class (rows) and predicted class (columns), int64 [K, K]."""
        return metrics.confusion_matrix(self._labels, self._predicted, len(self.classes))

    @cached_property
    def precision_curve(self) -> list[tuple[float, float]]:
        """About a hundred points (coverage, precision), starting at `least_accepted` images."""
        curve = compute_risk_coverage(self._confidences, self._predicted != self._labels).to_dict()
        least = (self.least_accepted - 0.5) / max(len(self._labels), 1)
        return [(x, 1 - y) for x, y in zip(curve["coverage"], curve["risk"], strict=True) if x >= least]

    @property
    def least_accepted(self) -> int:
        """The number of classified images at the start of `precision_curve`."""
        return min(LEAST_ACCEPTED, len(self._labels))

    @cached_property
    def slices(self) -> tuple[SliceMetrics, ...]:
        """The accuracy on the slices with the largest gaps to the rest, as in the report; empty if none are stored."""
        correct = self._predicted == self._labels
        return evaluate_slices(self._slice_masks, correct, self._resampling.groups)[:MAX_SLICES]

    @property
    def groups(self) -> int | None:
        """The number of groups that intervals resample; None if each image is on its own."""
        return count_groups(self._resampling.groups)

    @cached_property
    def grades(self) -> dict[str, Metric]:
        """Metrics of how far predicted grades are from the true ones, by name, if the classes are grades."""
        return compute_ordinal_metrics(self._labels, self._predicted, len(self.classes), self._resampling.groups)

    @property
    def lowest_precision(self) -> float:
        """Where the axis of a plot of `precision_curve` begins: a multiple of 0.1 below 1."""
        return min(math.floor(10 * min(y for _, y in self.precision_curve)) / 10, 0.9)

    def choose_confidence(self, coverage: float) -> float:
        """Return the largest confidence reached by at least a fraction `coverage` in [0, 1] of the images."""
        ranked = np.sort(self._confidences)[::-1]
        count = math.ceil(round(coverage * len(ranked), 6))
        return float(ranked[count - 1]) if count else 1.0

    def describe_selection(self, confidence: float) -> dict[str, Any]:
        """Return the metrics of a model that abstains below `confidence` in [0, 1], as JSON values.

        Precision is over the classified images. Recall is the fraction of all images, including abstentions, that are
        classified correctly; both are given over all classes and per class. `below` is the largest confidence at which
        the model abstains.
        """
        is_accepted = self._confidences >= np.float32(confidence)
        # over the classified images only
        confusion = metrics.confusion_matrix(self._labels[is_accepted], self._predicted[is_accepted], len(self.classes))
        hits, accepted, count = int(np.trace(confusion)), int(is_accepted.sum()), len(self._labels)
        return {
            "confidence": confidence,
            "below": float(np.nextafter(np.float32(confidence), np.float32(-1))) if confidence else None,
            "count": count,
            "accepted": accepted,
            "errors": accepted - hits,
            **self._describe_rates(is_accepted),
            "classes": self._describe_classes(confusion, is_accepted),
        }

    def _describe_rates(self, is_accepted: NDArray[np.bool_]) -> dict[str, dict[str, Any]]:
        """Return coverage, abstention, precision and recall of all classes, with their intervals."""
        is_hit, everything = is_accepted & (self._predicted == self._labels), np.ones(len(self._labels), bool)
        columns = {
            "coverage": (is_accepted, everything), "abstention": (~is_accepted, everything),
            "precision": (is_hit, is_accepted), "recall": (is_hit, everything),
        }  # fmt: skip
        hits, among = (np.stack(of, axis=1) for of in zip(*columns.values(), strict=True))
        rates = {}
        for i, (name, interval) in enumerate(
            zip(columns, self._resampling.estimate_proportions(hits, among), strict=True)
        ):
            number, count = int(hits[:, i].sum()), int(among[:, i].sum())
            metric = Metric(number / count, interval) if count else Metric(None)
            if count and interval is None:
                metric = replace(metric, interval=find_accuracy_interval(metric, 1))  # all images are in one group
            rates[name] = metric.to_dict()
        return rates

    def _describe_classes(self, confusion: NDArray[np.int64], is_accepted: NDArray[np.bool_]) -> list[dict[str, Any]]:
        """Return the precision and recall of each class, from the confusion matrix of the classified images."""
        with_abstentions = np.pad(confusion, ((0, 1), (0, 1)))  # as predictions of an additional class
        with_abstentions[:-1, -1] = self._support - confusion.sum(1)
        per_class = compute_class_metrics(with_abstentions, (*self.classes, ""))[:-1]
        if self._resampling.groups is not None and len(self._labels):
            per_class = add_group_intervals(per_class, self._predicted, self._labels, self._resampling, is_accepted)
        return [
            {
                "label": one.label,
                "support": one.support,
                "precision": Metric(one.precision, one.precision_interval).to_dict(),
                "recall": Metric(one.recall, one.recall_interval).to_dict(),
            }
            for one in per_class
        ]

    def list_cells(self) -> list[dict[str, Any]]:
        """Return the rows of the confusion matrix; see `list_cells`."""
        return list_cells(self.confusion, self.classes)

    def list_confused_pairs(self) -> list[tuple[str, str, int]]:
        """Return the true class, the predicted class and the count of the most frequent confusions."""
        pairs = metrics.most_confused_pairs(self.confusion, MAX_PAIRS)
        return [(self.classes[i], self.classes[j], count) for i, j, count in pairs]


def list_cells(confusion: NDArray[np.int64], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of a confusion matrix, int64 [K, K], only of the classes with the most errors if there are many.

    Each row has a `label`, a `support` and `cells`: the predicted class, the count, its `fraction` of the support, and
    a shade from 0 to `SHADES`.
    """
    off_diagonal = confusion - np.diag(np.diagonal(confusion))
    errors = off_diagonal.sum(0) + off_diagonal.sum(1)
    positions = sorted(np.argsort(-errors, kind="stable")[:MAX_CLASSES].tolist())
    support = confusion.sum(1).tolist()
    return [
        {
            "label": classes[i],
            "support": support[i],
            "cells": [
                {
                    "predicted": classes[j],
                    "count": count,
                    "fraction": count / max(support[i], 1),
                    "is_right": i == j,
                    "shade": math.ceil(SHADES * count / max(support[i], 1)),
                }
                for j in positions
                for count in [int(confusion[i, j])]
            ],
        }
        for i in positions
    ]


def make_routes(model: RunModel, name: str, pages: Pages) -> list[Route]:
    """Return the routes of the page and its figures."""
    run = model.run.directory
    results: dict[str, SplitResults] = {
        split: SplitResults(predictions, model.number_groups(split)) for split, predictions in list_evaluated(model)
    }
    targets = find_task(run.config.model.task).targets
    thresholds = run.read_thresholds()
    fitted = None if thresholds is None or targets.are_paths else thresholds.confidence  # a tree's is for all its nodes

    def page(request: Request) -> Response:
        if not results:
            return pages.render(request, "results.html.j2", name=name, split=None, splits=[], run=str(run.path))
        split, chosen = find_split(results, request)
        requested = request.query_params.get("confidence")
        confidence = (fitted or 0.0) if requested is None else parse_fraction("confidence", requested)
        return pages.render(
            request, "results.html.j2", name=name, split=split, splits=list(results), results=chosen, fitted=fitted,
            run=str(run.path), max_classes=MAX_CLASSES, grades=chosen.grades if targets.are_ordered else {},
            are_paths=targets.are_paths, is_folded=model.is_folded, recorded=model.find_recorded_split(split),
            selection=chosen.describe_selection(confidence), block=choose_block(request, len(chosen.classes)),
        )  # fmt: skip

    def select(request: Request) -> StrictJSONResponse:
        _, chosen = find_split(results, request)
        params = request.query_params
        if "coverage" in params:
            confidence = chosen.choose_confidence(parse_fraction("coverage", params["coverage"]))
        else:
            confidence = parse_fraction("confidence", params.get("confidence", "0"))
        return StrictJSONResponse(chosen.describe_selection(confidence))

    return [Route("/results", page), Route("/results/selection", select)]


def list_evaluated(model: RunModel) -> list[tuple[Split, LabeledPredictions]]:
    """Return the splits that the run was evaluated on, in the order to show them, with their predictions."""
    return sorted(model.predictions.items(), key=lambda item: REPORTED.index(item[0]))


def open_images(
    request: Request, model: RunModel, library: Library, paths: Iterable[str], *, is_ranked: bool = False
) -> RedirectResponse:
    """Redirect to the list of only the images at `paths`, in this order if they are ranked."""
    positions = (position for position in model.find_positions(paths) if position is not None)
    query = {"selection": library.add_selection(positions, is_ranked=is_ranked)}
    if is_ranked:
        query["sort"] = "rank"
    if "lang" in request.query_params:
        query["lang"] = request.query_params["lang"]
    return RedirectResponse(f"/?{urlencode(query)}", 303)


def find_split(results: Mapping[str, Results], request: Request) -> tuple[str, Results]:
    """Return the requested split, by default the first, and its results; raise `HTTPException` for an unknown one."""
    split = request.query_params.get("split") or next(iter(results), "")
    if split not in results:
        raise HTTPException(404, f"The run was not evaluated on a split {split[:40]!r}.")
    return split, results[split]
