"""The images of a run: find them, verify them, and detect them among other images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sightline.data import datasets, patch
from sightline.data.index import index as make_index
from sightline.data.leakage import SmallImages, near_contents, small_images
from sightline.data.membership import ImageRow, Matched, match
from sightline.errors import DataError, MissingImagesError, plural
from sightline.prediction.manifest import Manifest
from sightline.records import Index, Labelled, Missing, Overlap, Part, Progress, no_progress
from sightline.run import Run
from sightline.workflow.request import Request

NAMES = 3  # paths shown in a message


@dataclass(frozen=True, slots=True)
class Known:
    """The images a model was trained and validated on: content hashes, and small versions if they were saved."""

    contents: frozenset[str]
    small: SmallImages | None


def sources(run: Run) -> list[str]:
    """Return the sources of a run, with relative paths resolved against the directory it was trained in.

    Raises `DataError` for arrays, which a run does not store, and for a missing source.
    """
    request = _request(run)
    names = list(run.config.data.sources) if request is None else request.reached()
    if not names or (request is not None and request.arrays):
        raise DataError("This model was trained on arrays, which the run does not store: give images to evaluate on.")
    for name in names:
        if not Path(name).expanduser().exists() and not datasets.is_named(name):
            place = name if request is None else Path(request.folder, name)
            raise DataError(
                f"The images of the run {run.path} are no longer at {place}: restore them, or give other images."
            )
    return names


def find(run: Run, progress: Progress = no_progress, index: Index | None = None) -> Matched:
    """Match the sources of a run with the images that it recorded.

    `index` holds the images of the sources, with the run's corrections applied, if they are already indexed.
    """
    rows = run.read_data()
    if rows is None:
        raise DataError(
            f"The run {run.path} was interrupted before it read its images: `sightline resume {run.path}` continues."
        )
    if index is not None:
        return _without_rejected(match(rows, index), run)
    config, request = run.config, _request(run)
    options = config.data if request is None else request.anchored(config).data
    index = make_index(sources(run), progress, config.device.threads or None, options=options)
    corrections = [] if run.patch is None else [fix for _, fix in patch.read(run.patch)]
    relabeled = {(fix.path, fix.sha256): fix.label for fix in corrections if fix.action == "relabel"}
    dropped = {(fix.path, fix.sha256) for fix in corrections if fix.action == "drop"}
    found = match(rows, index, relabeled)
    others = [p for p in found.others if (p.path, p.sha256) not in dropped]
    return _without_rejected(replace(found, others=tuple(others)), run)


def _without_rejected(found: Matched, run: Run) -> Matched:
    """Return `found` without `others` that training rejected."""
    rejected = run.read_rejected()
    return replace(found, others=tuple(p for p in found.others if p.path not in rejected))


def _request(run: Run) -> Request | None:
    values = run.info.get("request")
    return None if values is None else Request.from_dict(values, str(run.path / "run.json"))


def check_complete(run: Run, matched: Matched, what: str, advice: str = "") -> None:
    """Raise `MissingImagesError` unless all recorded images exist; the message names `what` and ends with `advice`."""
    if matched.complete:
        return
    missing, changed = len(matched.missing), len(matched.changed)
    total = len(matched.rows) + missing + changed
    kinds = [f"{missing} {'is' if missing == 1 else 'are'} missing"] if missing else []
    kinds += [f"{changed} changed since training"] if changed else []
    first = [row.path for row in (*matched.missing, *matched.changed)][:NAMES]
    raise MissingImagesError(
        f"Of the {total} {what} of the run {run.path}, {' and '.join(kinds)}, such as {', '.join(first)}: "
        f"restore them{advice}."
    )


def missing(matched: Matched) -> Missing | None:
    """Return the missing and changed images of one split; None if there are none."""
    lost = (*matched.missing, *matched.changed)
    if not lost:
        return None
    return Missing(tuple(row.path for row in lost), len(matched.changed), len(matched.rows) + len(lost))


def home(path: Path, manifest: Manifest) -> Run | None:
    """Return the run whose folder contains a bundle or an export of its weights; None if there is none."""
    weights = {manifest.weights_sha256, *(str(step.get("weights_sha256")) for step in manifest.lineage)}
    for folder in path.resolve().parents:
        if (folder / "run.json").is_file():
            run = Run(folder)
            return run if (run.info.get("result") or {}).get("weights_sha256") in weights else None
    return None


def known(run: Run | None) -> Known | None:
    """Return the images a run's model was trained and validated on; None if unknown."""
    rows = None if run is None else run.read_data()
    if run is None or rows is None:
        return None
    return Known(frozenset(row.sha256 for row in rows if row.split != "test"), run.read_small_images())


def set_apart(labelled: Labelled, known: Known | None, name: str, *, include: bool) -> Labelled:
    """Exclude images that a model was trained or validated on, and near duplicates of them, unless `include`.

    Raises `DataError` if no image of `name` remains.
    """
    if known is None:
        return replace(labelled, overlap=Overlap(None, None, include))
    pictures = labelled.pictures
    identical = {i for i, p in enumerate(pictures) if p.sha256 in known.contents}
    near = _near(labelled, known, [i for i in range(len(pictures)) if i not in identical])
    paths = [tuple(pictures[i].path for i in sorted(at)) for at in (identical, near or ())]
    overlap = Overlap(paths[0], None if near is None else paths[1], include)
    if include or not overlap.count:
        return replace(labelled, overlap=overlap)
    keep = np.array([i for i in range(len(pictures)) if i not in identical and i not in (near or ())], np.int64)
    if not len(keep):
        raise DataError(
            f"The model was trained or validated on all {plural(len(pictures), 'image')} of {name}, or on near "
            "duplicates of them: give other images, or include these with --include-training."
        )
    kept = tuple(pictures[i] for i in keep)
    return replace(labelled, samples=labelled.samples.at(keep), pictures=kept, overlap=overlap)


def _near(labelled: Labelled, known: Known, at: Sequence[int]) -> set[int] | None:
    """Return which of the images at indices `at` are near duplicates of known ones; None if not comparable."""
    contents = [labelled.pictures[i].sha256 for i in at]
    rows = labelled.samples.rows[np.array(at, np.int64)]
    small = None if known.small is None else small_images(labelled.samples.pixels, rows, contents)
    if known.small is None or small is None:
        return None
    near = near_contents(known.small, small)
    return {i for i, sha in zip(at, contents, strict=True) if sha in near}


def placed(rows: Sequence[ImageRow], index: Index) -> Index:
    """Assign images the splits that a run had them in, by content; others are unchanged.

    Training images stay in training, even if the run had a copy in another split.
    """
    split_of: dict[str, Part] = {}
    for split in ("test", "validation", "train"):  # later splits take precedence
        split_of |= {row.sha256: row.split for row in rows if row.split == split}
    pictures = tuple(replace(p, part=split_of.get(p.sha256, p.part)) for p in index.pictures)
    return replace(index, pictures=pictures)
