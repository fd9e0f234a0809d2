"""The results page of a multi-label run: each class at an adjustable threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline import metrics
from sightline.evaluation.bootstrap import Resampling, count_groups
from sightline.evaluation.label_pairs import PAIR_KINDS, LabelPairErrors, count_pair_errors, select_pair
from sightline.evaluation.label_thresholds import list_thresholds
from sightline.evaluation.results import LabeledPredictions, Metric
from sightline.intervals import Interval
from sightline.studio.features import RunModel
from sightline.studio.library import Library
from sightline.studio.pages import Pages, StrictJSONResponse, choose_block
from sightline.studio.query import parse_fraction
from sightline.studio.results import find_split, list_evaluated, open_images

KINDS = ("correct", "missed", "wrong")  # kinds of images counted in a row


class LabelResults:
    """A run's predictions for the images of one split, which may have several classes each."""

    def __init__(
        self,
        predictions: LabeledPredictions,
        thresholds: NDArray[np.float64],
        groups: NDArray[np.int64] | None = None,
    ) -> None:
        """`thresholds`, float64 [K], are the model's; infinity for a class that is never predicted.

        `groups` [N] are the images' group numbers, from 0; None if each image is on its own.
        """
        self._resampling = Resampling(groups=groups)
        self.classes, self.count = predictions.classes, len(predictions.labels)
        self.paths = predictions.paths
        self._labels: NDArray[np.bool_] = predictions.labels.astype(bool)
        self._probabilities, self._thresholds = predictions.probabilities, thresholds
        everyone = np.ones((1, self.count))
        self._average_precisions = [
            float(metrics.auroc_and_ap(predictions.probabilities[:, k].astype(np.float64), truth, everyone)[1][0])
            for k, truth in enumerate(self._labels.T)
        ]

    @property
    def groups(self) -> int | None:
        """The number of groups that intervals resample; None if each image is on its own."""
        return count_groups(self._resampling.groups)

    def describe(self) -> list[dict[str, Any]]:
        """Return the row of each class at the model's threshold."""
        return self._describe_rows(range(len(self.classes)), self._thresholds)

    def describe_label(self, label: str, threshold: float) -> dict[str, Any]:
        """Return the metrics of a class that is predicted at probabilities of at least `threshold`, as JSON values.

        Precision and recall have the same 95% intervals as in an evaluation: Wilson's, or resampled groups. The average
        precision does not depend on the threshold; average precision, recall and F1 are None if no image has the class.
        Raises `HTTPException` if there is no such class.
        """
        return self._describe_rows([self._find(label)], np.array([threshold]))[0]

    def _describe_rows(self, positions: Sequence[int], thresholds: NDArray[np.float64]) -> list[dict[str, Any]]:
        columns = list(positions)
        has, predicted = self._labels[:, columns], self._probabilities[:, columns] >= thresholds
        precisions = self._resampling.estimate_proportions(has, predicted)
        recalls = self._resampling.estimate_proportions(predicted, has)
        return [
            self._describe_row(k, float(threshold), precision, recall)
            for k, threshold, precision, recall in zip(positions, thresholds, precisions, recalls, strict=True)
        ]

    def _describe_row(
        self, position: int, threshold: float, precision: Interval | None, recall: Interval | None
    ) -> dict[str, Any]:
        label, average = self.classes[position], self._average_precisions[position]
        correct, missed, wrong = (int(self._select(label, threshold, kind).sum()) for kind in KINDS)
        support, predicted = correct + missed, correct + wrong
        return {
            "label": label,
            "support": support,
            "threshold": threshold if math.isfinite(threshold) else None,
            "average_precision": average if support else None,
            "precision": Metric(correct / predicted if predicted else None, precision).to_dict(),
            "recall": Metric(correct / support if support else None, recall).to_dict(),
            "f1": 2 * correct / (2 * correct + missed + wrong) if support else None,
            "correct": correct,
            "missed": missed,
            "wrong": wrong,
        }

    def list_rows(self, label: str, threshold: float, kind: str) -> list[int]:
        """Return the rows of the images of one of `KINDS`; raise `HTTPException` if there is no such class or kind."""
        return [int(row) for row in np.flatnonzero(self._select(label, threshold, kind))]

    def list_pairs(self) -> tuple[LabelPairErrors, ...]:
        """Return the pairs of classes with the most errors at the model's thresholds."""
        return count_pair_errors(self.classes, self._labels, self._probabilities >= self._thresholds)

    def list_pair_rows(self, first: str, second: str, kind: str) -> list[int]:
        """Return the rows of the images of one of `PAIR_KINDS`; raise `HTTPException` if there is no such pair."""
        pair = self._find(first), self._find(second)
        if kind not in PAIR_KINDS:
            raise HTTPException(404, f"There are no images of the kind {kind[:80]!r}.")
        predicted = self._probabilities >= self._thresholds
        return [int(row) for row in np.flatnonzero(select_pair(self._labels, predicted, pair, kind))]

    def _find(self, label: str) -> int:
        if label not in self.classes:
            raise HTTPException(404, f"There is no class {label[:80]!r}.")
        return self.classes.index(label)

    def _select(self, label: str, threshold: float, kind: str) -> NDArray[np.bool_]:
        if kind not in KINDS:
            raise HTTPException(404, f"There are no images of the kind {kind[:80]!r}.")
        position = self._find(label)
        cut = np.float64(threshold)  # a Python float would be rounded to float32, which can count an image below it
        has, predicted = self._labels[:, position], self._probabilities[:, position] >= cut
        selected: NDArray[np.bool_] = {
            "correct": has & predicted, "missed": has & ~predicted, "wrong": ~has & predicted
        }[kind]  # fmt: skip
        return selected


def make_routes(model: RunModel, library: Library, name: str, pages: Pages) -> list[Route]:
    """Return the routes for the page, the row of a class at a threshold, and the images of a class or a pair."""
    run = model.run.directory
    thresholds = run.read_thresholds()
    results: Mapping[str, LabelResults] = {
        split: LabelResults(predictions, list_thresholds(thresholds, predictions.classes), model.number_groups(split))
        for split, predictions in list_evaluated(model)
    }

    def page(request: Request) -> Response:
        if not results:
            return pages.render(request, "results.html.j2", name=name, split=None, splits=[], run=str(run.path))
        split, chosen = find_split(results, request)
        block = choose_block(request, len(chosen.classes))
        return pages.render(
            request, "label_results.html.j2", name=name, split=split, splits=list(results), rows=chosen.describe(),
            block=block, is_folded=model.is_folded, recorded=model.find_recorded_split(split),
            pairs=chosen.list_pairs(), pair_kinds=PAIR_KINDS, groups=chosen.groups, count=chosen.count,
            path_of_run=str(run.path),
        )  # fmt: skip

    def describe(request: Request) -> StrictJSONResponse:
        _, chosen = find_split(results, request)
        return StrictJSONResponse(chosen.describe_label(*_read_label(request)))

    def list_images(request: Request) -> Response:
        _, chosen = find_split(results, request)
        rows = chosen.list_rows(*_read_label(request), request.query_params.get("kind", ""))
        return open_images(request, model, library, [chosen.paths[row] for row in rows])

    def list_pair_images(request: Request) -> Response:
        _, chosen = find_split(results, request)
        first, second, kind = (request.query_params.get(name, "") for name in ("first", "second", "kind"))
        rows = chosen.list_pair_rows(first, second, kind)
        return open_images(request, model, library, [chosen.paths[row] for row in rows])

    return [
        Route("/results", page),
        Route("/results/label", describe),
        Route("/results/images", list_images),
        Route("/results/pair", list_pair_images),
    ]


def _read_label(request: Request) -> tuple[str, float]:
    """Return the class and the threshold from a URL; without a threshold, the class is never predicted."""
    text = request.query_params.get("threshold", "")
    return request.query_params.get("label", ""), parse_fraction("threshold", text) if text else math.inf
