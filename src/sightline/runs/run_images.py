"""The images of a run: find them, verify them, and detect them among other images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sightline import _io
from sightline.callbacks import Progress, no_progress
from sightline.config import DataConfig
from sightline.data import label_patch
from sightline.data.checks.leakage import SmallImages, find_near_contents, make_small_images
from sightline.data.dataset import DecodedDataset
from sightline.data.file_records import FileRecords
from sightline.data.indexing import Sources, build_index
from sightline.data.recorded_images import ImageRow, MatchedImages, match_images
from sightline.data.remote import is_url
from sightline.data.sources import named
from sightline.data.targets import Targets
from sightline.data.types import Index, LabeledSubset, MissingImages, Split, TrainingOverlap
from sightline.errors import DataError, MissingImagesError, plural
from sightline.escaping import quote_path
from sightline.inference.manifest import Manifest
from sightline.runs.directory import RunDirectory
from sightline.runs.folds import select_images
from sightline.runs.paths import is_run
from sightline.runs.train_request import TrainRequest
from sightline.tasks.protocol import find_task

MAX_PATHS = 3  # paths shown in a message
IN_MEMORY = (
    "This model was trained on images in memory (arrays or a DataFrame), which the run does not store: give the same "
    "data again, as in clf.evaluate(data) from Python, or other images."
)


@dataclass(frozen=True, slots=True)
class KnownImages:
    """The images a model was trained and validated on: content hashes, and small versions if they were saved."""

    contents: frozenset[str]
    small: SmallImages | None


def is_in_memory(run: RunDirectory) -> bool:
    """Return whether the run was trained on images or labels in memory, which it does not store."""
    request = _read_request(run)
    return not run.config.data.sources if request is None else request.arrays or not request.sources


def find_in_memory(run: RunDirectory, sources: Sources, progress: Progress) -> Index | None:
    """Return the index of `sources`, with the run's corrections applied, if they include all images of the run."""
    targets = find_task(run.config.model.task).targets
    index = label_patch.load_and_apply_patch(build_index(sources, progress, targets=targets), run.patch)
    rows = run.read_data()
    return index if rows is not None and match_images(rows, index).complete else None


def resolve_sources(run: RunDirectory) -> list[str]:
    """Return the sources of a run, with relative paths resolved against the directory it was trained in.

    Raises `DataError` for arrays, which a run does not store, and for a missing source.
    """
    request = _read_request(run)
    names = list(run.config.data.sources) if request is None else request.named_sources()
    if is_in_memory(run):
        raise DataError(IN_MEMORY)
    check_sources(run, names, "give other images")
    return names


def check_sources(run: RunDirectory, names: Sequence[str], advice: str) -> None:
    """Raise `DataError` if a source of a run is missing; the message ends with `advice` besides restoring it."""
    request = _read_request(run)
    for name in names:
        if not _io.exists(_io.expand_home(name)) and not named.is_named(name) and not is_url(name):
            location = name if request is None else Path(request.folder, name)
            raise DataError(f"The images of the run {run.path} are no longer at {location}: restore them, or {advice}.")


def match_run_images(run: RunDirectory, progress: Progress = no_progress, index: Index | None = None) -> MatchedImages:
    """Match the sources of a run with the images that it recorded.

    `index` contains the images of the sources, with the run's corrections applied, if they are already indexed.
    """
    rows = run.read_data()
    if rows is None:
        raise DataError(
            f"The run {run.path} was interrupted before it read its images: "
            f"`sightline resume {quote_path(run.path)}` continues."
        )
    if index is not None:
        return _without_unreadable(match_images(rows, index), run)
    index = select_images(read_run_index(run, progress), run.config.split)
    patch = run.patch
    corrections = [] if patch is None else [fix for _, fix in label_patch.read_patch(patch)]
    relabeled = {(fix.path, fix.sha256): fix.label for fix in corrections if fix.action == "relabel"}
    dropped = {(fix.path, fix.sha256) for fix in corrections if fix.action == "drop"}
    matched = match_images(rows, index, relabeled)
    others = [p for p in matched.unmatched if (p.path, p.sha256) not in dropped]
    return _without_unreadable(replace(matched, unmatched=tuple(others)), run)


def read_run_index(run: RunDirectory, progress: Progress, records: FileRecords | None = None) -> Index:
    """Return the index of the sources of a run as they are now, without the run's corrections."""
    config = run.config
    options, targets = resolve_data_options(run), find_task(config.model.task).targets
    return build_index(
        resolve_sources(run), progress, config.device.threads or None, options=options, targets=targets,
        records=records,
    )  # fmt: skip


def resolve_data_options(run: RunDirectory) -> DataConfig:
    """Return how a run reads its images, with paths relative to the current directory."""
    config, request = run.config, _read_request(run)
    return config.data if request is None else request.with_relative_paths(config).data


def choose_tree_options(run: RunDirectory | None, targets: Targets) -> DataConfig:
    """Return how to read images for an evaluation that are not the run's own: with its class tree, if any.

    Without its run, the tree is that of nested folders.
    """
    if not targets.are_paths:
        return DataConfig()
    tree = "" if run is None else resolve_data_options(run).class_tree
    return DataConfig(class_tree=tree or "folders")


def _without_unreadable(matched: MatchedImages, run: RunDirectory) -> MatchedImages:
    """Return `matched` without unmatched files that training could not read."""
    if not matched.unmatched:
        return matched
    paths = {file.path for file in run.read_unreadable()}
    return replace(matched, unmatched=tuple(p for p in matched.unmatched if p.path not in paths))


def _read_request(run: RunDirectory) -> TrainRequest | None:
    values = run.info.get("request")
    return None if values is None else TrainRequest.from_dict(values, str(run.path / "run.json"))


def check_unchanged(run: RunDirectory, data: DecodedDataset) -> None:
    """Raise `DataError` if the images, labels, masks or splits of `data` differ from those that the run started with.

    Only the splits differ if the source now defines others, or if its groups or the rule of an older version differ.
    """
    recorded_rows = run.read_data()
    if recorded_rows is None:
        return
    has_masks = any(row.mask for row in recorded_rows)
    current = [
        (p.sha256, p.label, split, data.hash_mask(p) if has_masks else "")
        for p, split in zip(data.images, data.splits, strict=True)
    ]
    recorded = [(row.sha256, row.label, row.split, row.mask) for row in recorded_rows]
    if recorded == current:
        return
    missing_images, new_images = Counter(recorded) - Counter(current), Counter(current) - Counter(recorded)
    if missing_images and Counter(map(_without_split, recorded)) == Counter(map(_without_split, current)):
        moved, row = next(pair for pair in zip(data.images, current, strict=True) if pair[1] in new_images)
        old_split = next(old[2] for old in missing_images if _without_split(old) == _without_split(row))
        raise DataError(
            f"The images of {data.name} are those that the run {run.path} started with, but {missing_images.total()} "
            f"of {len(recorded)} are in another split now, such as {moved.path}, which was in {old_split}: "
            "the source or its groups changed, or the run is from a version that split them differently. Restore "
            "the source, use that version, or retrain with --force."
        )
    before = {(of.path, row): None for of, row in zip(recorded_rows, recorded, strict=True)}
    now = {(of.path, row): None for of, row in zip(data.images, current, strict=True)}
    changed = [path for path, row in before if (path, row) not in now and row in missing_images]
    added = [path for path, row in now if (path, row) not in before and row in new_images]
    summary = (
        f"{missing_images.total()} of {len(recorded)} are missing or changed and {new_images.total()} are new, such as "
        f"{next(iter(changed + added), '')}"
    )
    if not missing_images and not new_images:
        summary = "files were renamed, which changes their order"
    raise DataError(
        f"The images of {data.name} are not those that the run {run.path} started with ({summary}): "
        "restore them, or retrain with --force."
    )


def _without_split(row: tuple[str, str, Split | None, str]) -> tuple[str, str, str]:
    sha256, label, _, mask = row
    return sha256, label, mask


def keep_splits(run: RunDirectory, index: Index) -> Index:
    """Return the images of a run that continues with its recorded splits, unless the source defines splits.

    The run can then continue even if a newer version would split its images differently. Other images are left to
    `check_unchanged`.
    """
    rows, config = run.read_data(), run.config
    if rows is None or config.split.folds or any(image.split for image in index.images):
        return index
    return restore_splits(rows, index) if match_images(rows, index).complete else index


def raise_if_incomplete(run: RunDirectory, matched: MatchedImages, description: str, advice: str) -> None:
    """Raise `MissingImagesError` unless all recorded images exist.

    The message names `description` and ends with `advice`.
    """
    if matched.complete:
        return
    missing, changed = len(matched.missing), len(matched.changed)
    total = len(matched.rows) + missing + changed
    problems = [f"{missing} {'is' if missing == 1 else 'are'} missing"] if missing else []
    problems += [f"{changed} changed since training"] if changed else []
    examples = [row.path for row in (*matched.missing, *matched.changed)][:MAX_PATHS]
    raise MissingImagesError(
        f"Of the {total} {description} of the run {run.path}, {' and '.join(problems)}, such as {', '.join(examples)}: "
        f"restore them{advice}."
    )


def summarize_missing(matched: MatchedImages) -> MissingImages | None:
    """Return the missing and changed images of one split; None if there are none."""
    missing_rows = (*matched.missing, *matched.changed)
    if not missing_rows:
        return None
    return MissingImages(
        tuple(row.path for row in missing_rows), len(matched.changed), len(matched.rows) + len(missing_rows)
    )


def find_source_run(path: Path, manifest: Manifest) -> RunDirectory | None:
    """Return the run whose folder contains a bundle or an export of its weights; None if there is none."""
    weights = {manifest.weights_sha256, *(str(step.get("weights_sha256")) for step in manifest.lineage)}
    for folder in path.resolve().parents:
        if is_run(folder):
            run = RunDirectory(folder)
            return run if (run.info.get("result") or {}).get("weights_sha256") in weights else None
    return None


def load_known_images(run: RunDirectory | None) -> KnownImages | None:
    """Return the images a run's model was trained and validated on; None if unknown."""
    rows = None if run is None else run.read_data()
    if run is None or rows is None:
        return None
    return KnownImages(frozenset(row.sha256 for row in rows if row.split != "test"), run.read_small_images())


def exclude_known(
    labeled: LabeledSubset, known_images: KnownImages | None, source_name: str, *, include_known: bool
) -> LabeledSubset:
    """Exclude images that a model was trained or validated on, and near duplicates of them, unless `include_known`.

    Raises `DataError` if no image of `source_name` remains.
    """
    if known_images is None:
        return replace(labeled, overlap=TrainingOverlap(None, None, include_known))
    images = labeled.images
    identical = {i for i, p in enumerate(images) if p.sha256 in known_images.contents}
    near_indices = _find_near_duplicates(labeled, known_images, [i for i in range(len(images)) if i not in identical])
    paths = [tuple(images[i].path for i in sorted(indices)) for indices in (identical, near_indices or ())]
    overlap = TrainingOverlap(paths[0], None if near_indices is None else paths[1], include_known)
    if include_known or not overlap.count:
        return replace(labeled, overlap=overlap)
    keep = np.array([i for i in range(len(images)) if i not in identical and i not in (near_indices or ())], np.int64)
    if not len(keep):
        raise DataError(
            f"The model was trained or validated on all {plural(len(images), 'image')} of {source_name}, or on near "
            "duplicates of them: give other images, or include these with --include-training."
        )
    kept_images = tuple(images[i] for i in keep)
    return replace(labeled, subset=labeled.subset.select(keep), images=kept_images, overlap=overlap)


def _find_near_duplicates(labeled: LabeledSubset, known_images: KnownImages, indices: Sequence[int]) -> set[int] | None:
    """Return which of the images at indices `indices` are near duplicates of known ones; None if not comparable."""
    contents = [labeled.images[i].sha256 for i in indices]
    rows = labeled.subset.rows[np.array(indices, np.int64)]
    small = None if known_images.small is None else make_small_images(labeled.subset.pixels, rows, contents)
    if known_images.small is None or small is None:
        return None
    near_hashes = find_near_contents(known_images.small, small)
    return {i for i, sha in zip(indices, contents, strict=True) if sha in near_hashes}


def restore_splits(rows: Sequence[ImageRow], index: Index) -> Index:
    """Assign images the splits that a run had them in, by content; others are unchanged.

    Training images stay in training, even if the run had a copy in another split.
    """
    split_of: dict[str, Split] = {}
    for split in ("test", "validation", "train"):  # later splits take precedence
        split_of |= {row.sha256: row.split for row in rows if row.split == split}
    images = tuple(replace(p, split=split_of.get(p.sha256, p.split)) for p in index.images)
    return replace(index, images=images)
