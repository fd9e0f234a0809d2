"""The results page of a segmentation run: pixel metrics, confused classes, and the worst images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.evaluation.segmentation_metrics import MaskScores
from sightline.runs.metrics_info import read_metrics
from sightline.studio.features import RunModel
from sightline.studio.library import Library
from sightline.studio.mask_images import MaskImages
from sightline.studio.pages import Pages
from sightline.studio.results import MAX_CLASSES, find_split, list_cells, list_evaluated, open_images

HEADLINES = ("mean_iou", "mean_dice", "pixel_accuracy", "boundary_f1")
WORST = 12  # images on the page


@dataclass(frozen=True)
class MaskResults:
    """A run's predicted masks for the images at `paths`, with the content of ``metrics.json``."""

    paths: tuple[str, ...]
    classes: tuple[str, ...]
    metrics: Mapping[str, Any]
    scores: MaskScores | None

    @property
    def headlines(self) -> list[tuple[str, Mapping[str, Any]]]:
        """The metrics over all classes, by name: each with its `value` and `interval`."""
        return [(name, self.metrics["metrics"][name]) for name in HEADLINES if name in self.metrics["metrics"]]

    @cached_property
    def cells(self) -> list[dict[str, Any]]:
        """The rows of the confusion matrix of pixels; none if the run does not store the pixels of each image."""
        return [] if self.scores is None else list_cells(self.scores.compute_total(), self.classes)

    @cached_property
    def worst_rows(self) -> list[tuple[int, str, str]]:
        """The images with the lowest mean IoU, lowest first, with their most confused classes, "" if there are none."""
        if self.scores is None:
            return []
        ious, confused = self.scores.compute_iou(), self.scores.find_most_confused()
        order = np.argsort(ious, kind="stable")[: int(np.isfinite(ious).sum())][:WORST].tolist()
        pairs = ([self.classes[k] for k in confused.get(row, ())] or ["", ""] for row in order)
        return [(row, true, predicted) for row, (true, predicted) in zip(order, pairs, strict=True)]

    def rank_rows(self, label: str, predicted: str) -> list[int]:
        """Return the images with pixels of class `label` that are predicted as `predicted`, those with the most first.

        Raises `HTTPException` if there is no such class, or the run does not store the pixels of each image.
        """
        if self.scores is None or not {label, predicted} <= {*self.classes}:
            raise HTTPException(404, f"There are no pixels of {label[:80]!r} that are predicted as {predicted[:80]!r}.")
        pixels: NDArray[np.int64] = self.scores.count_pixels(*map(self.classes.index, (label, predicted)))
        order = np.argsort(-pixels, kind="stable")
        return [int(row) for row in order[: int((pixels > 0).sum())]]


def make_routes(model: RunModel, library: Library, masks: MaskImages, name: str, pages: Pages) -> list[Route]:
    """Return the routes for the page, and for the images whose pixels a cell of its matrix counts."""
    run, results = model.run.directory, dict[str, MaskResults]()
    for split, of_split in list_evaluated(model):
        metrics = read_metrics(run.path / "eval" / split / "metrics.json")
        results[split] = MaskResults(of_split.paths, of_split.classes, metrics, of_split.mask_scores)

    def page(request: Request) -> Response:
        if not results:
            return pages.render(request, "results.html.j2", name=name, split=None, splits=[], run=str(run.path))
        split, chosen = find_split(results, request)
        positions = model.find_positions([chosen.paths[row] for row, _, _ in chosen.worst_rows])
        worst = [
            library.describe([position])[0] | {"true": true, "predicted": predicted}
            for position, (_, true, predicted) in zip(positions, chosen.worst_rows, strict=True)
            if position is not None
        ]
        return pages.render(
            request, "mask_results.html.j2", name=name, split=split, splits=list(results), results=chosen, worst=worst,
            masks=masks, run=str(run.path), max_classes=MAX_CLASSES, is_folded=model.is_folded,
            recorded=model.find_recorded_split(split),
        )  # fmt: skip

    def list_images(request: Request) -> Response:
        _, chosen = find_split(results, request)
        query = request.query_params
        rows = chosen.rank_rows(query.get("label", ""), query.get("predicted", ""))
        return open_images(request, model, library, [chosen.paths[row] for row in rows], is_ranked=True)

    return [Route("/results", page), Route("/results/images", list_images)]
