"""The page that compares two runs: their accuracies, a paired test, and the images on which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.api.common_images import find_common_images, find_common_masks
from sightline.api.comparison import IMAGE_IOU, compare_runs, compare_to_first
from sightline.data.types import SPLITS
from sightline.errors import SightlineError
from sightline.evaluation.multi_label import MultiLabelResult
from sightline.evaluation.segmentation import SegmentationResult
from sightline.runs.directory import RunDirectory
from sightline.studio.features import RunModel
from sightline.studio.library import Library
from sightline.studio.pages import Pages
from sightline.tasks.protocol import find_task

MAX_RUNS = 200  # offered for comparison
MAX_IMAGES = 48  # of each kind on the page; the list of images has all of them


def make_routes(model: RunModel, library: Library, name: str, pages: Pages, others: Sequence[Path]) -> list[Route]:
    """Return the route of the page; `others` are runs to choose from besides those in the run's folder."""
    run = model.run.directory

    def page(request: Request) -> Response:
        runs = list_runs(run, others)
        chosen = request.query_params.get("with") or (next(iter(runs)) if others else "")
        if chosen and chosen not in runs:
            raise HTTPException(404, f"There is no evaluated run {chosen[:80]!r} to compare with.")
        values = {} if not chosen else compare_pair(model, library, runs[chosen])
        return pages.render(
            request,
            "comparison.html.j2",
            name=name,
            runs=list(runs),
            chosen=chosen,
            max_images=MAX_IMAGES,
            several=library.has_several_labels,
            masks=model.predicts_masks,
            label_metrics=SegmentationResult.headlines if model.predicts_masks else MultiLabelResult.headlines,
            **values,
        )

    return [Route("/compare", page)]


def list_runs(run: RunDirectory, others: Sequence[Path]) -> dict[str, Path]:
    """Return the evaluated runs to compare `run` with, by name: `others`, and runs of the same kind in its folder."""
    siblings = sorted(file.parent for file in run.path.resolve().parent.glob("*/run.json"))
    kind = _find_kind(run)
    known, runs = {run.path.resolve()}, {}
    for folder in (*others, *siblings):
        if folder.resolve() in known or not any((folder / "eval" / split).is_dir() for split in SPLITS):
            continue
        if folder in others or _find_kind(RunDirectory(folder)) == kind:
            known.add(folder.resolve())
            runs[str(folder) if folder.name in runs else folder.name] = folder
        if len(runs) == MAX_RUNS:
            break
    return runs


def _find_kind(run: RunDirectory) -> tuple[bool, bool] | None:
    """Return whether images have several classes and whether pixels have classes; None if it is not recorded."""
    try:
        targets = find_task(run.config.model.task).targets
    except SightlineError:
        return None
    return targets.allows_several, targets.are_masks


def compare_pair(model: RunModel, library: Library, other: Path) -> dict[str, Any]:
    """Return the comparison of two runs for the page.

    `rows` are the runs, `paired` the test, and `groups` the images on which they differ: `kind` is which run is right,
    `selection` the key that lists all of them, and `images` the first few, with the predictions of both runs.
    """
    run = model.run.directory
    rows = compare_runs([run.path, other])
    values: dict[str, Any] = {"rows": rows, "paired": compare_to_first(rows)[0], "groups": []}
    if values["paired"].metric == IMAGE_IOU:
        return values | {"groups": _list_mask_groups(model, library, RunDirectory(other))}
    common = find_common_images(run, RunDirectory(other))
    if common is None:
        return values
    positions = model.find_positions([common.first.paths[row] for row in common.rows[:, 0]])
    labels, (first, second) = common.labels, common.predicted
    for kind, is_member in (
        ("only-first", (first == labels) & (second != labels)),
        ("only-second", (first != labels) & (second == labels)),
        ("both-wrong", (first != labels) & (second != labels) & (first != second)),
    ):
        members = np.flatnonzero(is_member)
        images = _describe_images(library, members, positions, first, second)
        selection = library.add_selection(p for p in (positions[i] for i in members.tolist()) if p is not None)
        values["groups"].append({"kind": kind, "count": len(members), "selection": selection, "images": images})
    return values


def _list_mask_groups(model: RunModel, library: Library, other: RunDirectory) -> list[dict[str, Any]]:
    """Return the images with a higher mean IoU in the first and in the second run, the largest difference first."""
    common = find_common_masks(model.run.directory, other)
    if isinstance(common, str):
        return []
    positions, gains = model.find_positions(common.paths), common.ious[:, 1] - common.ious[:, 0]
    groups = []
    for kind, losses in (("better-first", gains), ("better-second", -gains)):
        order = [i for i in np.argsort(losses, kind="stable").tolist() if losses[i] < 0]
        known = {position: i for i in order if (position := positions[i]) is not None}
        images = [
            row | {"predictions": [f"IoU {iou:.3f}" for iou in common.ious[known[row["id"]]]]}
            for row in library.describe([*known][:MAX_IMAGES])
        ]
        selection = library.add_selection(known, is_ranked=True)
        groups.append({"kind": kind, "count": len(order), "selection": selection, "images": images})
    return groups


def _describe_images(
    library: Library,
    members: NDArray[np.int64],
    positions: Sequence[int | None],
    first: NDArray[np.str_],
    second: NDArray[np.str_],
) -> list[dict[str, Any]]:
    predictions = {positions[i]: (str(first[i]), str(second[i])) for i in members[:MAX_IMAGES].tolist()}
    rows = library.describe([position for position in predictions if position is not None])
    return [row | {"predictions": predictions[row["id"]]} for row in rows]
