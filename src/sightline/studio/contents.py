"""`Studio`: the images of a data set or a run that a studio shows, with their corrections."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from sightline import _io
from sightline.api.dataset import Dataset
from sightline.api.pretrained_features import compute_projected_features
from sightline.api.run import Run
from sightline.callbacks import Callback, Progress
from sightline.data.checks.finding import Finding
from sightline.data.file_records import FileRecords
from sightline.data.label_patch import choose_patch_path, read_patch
from sightline.data.sources.listing import SourceListing
from sightline.data.types import Index, Split
from sightline.errors import plural
from sightline.evaluation.slices import find_slices, record_properties
from sightline.runs.directory import RunDirectory
from sightline.runs.resolve import inspection_preprocess
from sightline.runs.run_images import is_in_memory, read_run_index, resolve_sources
from sightline.studio.background import ProgressCallback
from sightline.studio.checks import BackgroundCheck
from sightline.studio.corrections import Corrections, open_corrections
from sightline.studio.feature_process import compute_in_process, list_images
from sightline.studio.features import RunModel
from sightline.studio.folder_export import FolderExport
from sightline.studio.image_predictions import list_predictions
from sightline.studio.labeling import ComputeFeatures, Labeling
from sightline.studio.library import Library
from sightline.studio.look_alikes import LookAlikes
from sightline.studio.mask_images import MaskImages
from sightline.studio.thumbnails import Thumbnails
from sightline.studio.training_data import OwnData, read_run_data, set_task
from sightline.studio.training_runs import TrainingRuns
from sightline.tasks.protocol import find_task


@dataclass(frozen=True, slots=True)
class Studio:
    """The content of the pages: the images, corrections, versions and findings, the run's model, and other runs."""

    name: str
    library: Library
    corrections: Corrections
    thumbnails: Thumbnails
    check: BackgroundCheck
    folders: FolderExport
    model: RunModel | None = None
    compared: tuple[Path, ...] = ()
    labeling: Labeling | None = None
    training: TrainingRuns | None = None
    look_alikes: LookAlikes | None = None
    masks: MaskImages | None = None
    raw_csv: bool = False
    known_files: int = 0


@contextmanager
def open_studio(
    data: Dataset | Run,
    patch: Path | None = None,
    callback: Callback | None = None,
    compare: Sequence[Run] = (),
    classes: Sequence[str] = (),
    runs: Path | None = None,
    *,
    raw_csv: bool = False,
) -> Iterator[Studio]:
    """Read the images and open the file of corrections for the block; arguments and errors are as in `run_studio`."""
    if patch is not None and not _io.exists(_io.output_path(patch)):
        _io.check_writable(_io.output_path(patch), "--patch")  # before the images are read
    progress, run = (callback or Callback()).on_progress, data.directory if isinstance(data, Run) else None
    index, known_files = _read_index(data, progress)
    if run is not None and find_task(run.config.model.task).targets.allows_several and not index.several_labels:
        index = replace(index, several_labels=f"{run.path} is a classifier of several labels")
    if callback is not None and index.unreadable:
        first, count = index.unreadable[0], len(index.unreadable)
        callback.on_message(f"{plural(count, 'file')} cannot be shown; the first, {first.path}: {first.reason}")
    model = RunModel(data, index) if isinstance(data, Run) else None
    splits = {} if model is None else _list_splits(model)
    predictions = {} if model is None else list_predictions(model)
    input_config = data.config.input
    preprocess, _ = inspection_preprocess(input_config, index, progress)
    path = _io.output_path(patch or choose_patch_path(index.name))
    with ExitStack() as stack:  # stops them in reverse order
        own_patch = None if run is None else run.patch
        corrections = stack.enter_context(open_corrections(path, index, own_patch, splits))
        issues = [] if run is None else _list_label_issues(run, index)
        to_choose = () if index.labels_are_masks else classes
        library = Library(index, corrections, splits, predictions, issues, _list_slices(model, index), to_choose)
        stack.callback(library.close)
        check = BackgroundCheck(index, library, input_config)
        labeling = look_alikes = None
        if isinstance(data, Dataset):
            compute = _make_compute(data, index)
            look_alikes = LookAlikes(index, compute, check)
            if not index.labels_are_masks:
                labeling = _make_labeling(data, compute, index, corrections, classes)
                stack.callback(labeling.stop)
            stack.callback(look_alikes.features.stop)
        if model is not None:
            stack.callback(model.features.stop)
        folders = FolderExport(index, corrections, splits, _list_paths(data))
        stack.callback(folders.stop)
        stack.callback(check.stop)
        training = _make_training(data, corrections, index, runs)
        if training is not None:
            stack.callback(training.closing.set)
        thumbnails = Thumbnails(index, preprocess)
        known = run.read_model_spec()[0] if run is not None and run.has_model else ()
        masks = MaskImages(index, known) if index.labels_are_masks else None
        others = tuple(other.path for other in compare)
        yield Studio(
            index.name, library, corrections, thumbnails, check, folders, model, others, labeling, training,
            look_alikes, masks, raw_csv, known_files,
        )  # fmt: skip


def _read_index(data: Dataset | Run, progress: Progress) -> tuple[Index, int]:
    """Return the images, and how many files needed no reading; their records are not kept in memory."""
    if isinstance(data, Run):
        records = FileRecords([data.directory.path.resolve()], data.directory.config.data.limits)
        return read_run_index(data.directory, progress, records), records.count
    records = FileRecords(_list_paths(data), data.config.data.limits)
    return list_images(data, progress, records), records.count


def _list_splits(model: RunModel) -> dict[tuple[str, str], Split]:
    """Return the splits of the run's images, by path and content, except those set by lines of its patch."""
    patch = model.run.directory.patch
    lines = [] if patch is None else read_patch(patch)
    moved = {(entry.path, entry.sha256) for _, entry in lines if entry.action == "move"}
    return {key: split for key, split in model.splits.items() if key not in moved}


def _list_paths(data: Dataset | Run) -> list[str | Path]:
    """Return those sources of the images that are paths or names."""
    if isinstance(data, Dataset):
        return [source for source in data.sources if not isinstance(source, SourceListing)]
    return [] if is_in_memory(data.directory) else [*resolve_sources(data.directory)]


def _make_training(
    data: Dataset | Run, corrections: Corrections, index: Index, folder: Path | None
) -> TrainingRuns | None:
    """Return the training runs of the studio; None on Windows, where a process cannot be asked to save and end."""
    if os.name != "posix":
        return None
    own, opened = None, ""
    if isinstance(data, Run):
        of_run = data.directory.path.resolve()
        folder = folder or data.directory.path.parent
        opened = of_run.name if folder.resolve() == of_run.parent else ""
        if not is_in_memory(data.directory):
            read = read_run_data(data.directory)
            own = OwnData(read.sources, read.settings, corrections, read.patch)
    elif not data.is_in_memory:
        own = OwnData(tuple(map(str, data.sources)), _list_settings(data, index), corrections)
    return TrainingRuns(folder or Path("runs"), own, index.name, opened)


def _list_settings(data: Dataset, index: Index) -> tuple[str, ...]:
    """Return the settings for reading the images, with the task of their labels."""
    states_task = any(setting.startswith("model.task=") for setting in data.settings)
    task = "segmentation" if index.labels_are_masks else "multi_label" if index.several_labels else ""
    return (*data.settings, *(() if states_task else set_task(task)))


def _make_compute(data: Dataset, index: Index) -> ComputeFeatures:
    """Return a function that computes the images' projected features once; other callers wait for the same result."""
    lock, settings = Lock(), _list_settings(data, index)
    known: list[tuple[NDArray[np.float32], NDArray[np.bool_]]] = []
    waiting: list[Callback] = []

    def report(task: str, done: int, total: int) -> None:
        for callback in waiting:
            callback.on_progress(task, done, total)

    def compute(images: Index, callback: Callback) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        waiting.append(callback)
        with lock:
            if not known:
                report("indexing", 0, 0)  # raises if the studio is closing, before any work
                reporter = ProgressCallback(report)
                known.append(
                    compute_projected_features(images, settings, reporter)
                    if data.is_in_memory
                    else compute_in_process([str(source) for source in data.sources], settings, images, reporter)
                )
            return known[0]

    return compute


def _make_labeling(
    data: Dataset, compute: ComputeFeatures, index: Index, corrections: Corrections, classes: Sequence[str]
) -> Labeling:
    settings = _list_settings(data, index)
    sources = [*map(str, data.sources), *(word for setting in settings for word in ("--set", setting))]
    words = ["sightline", "train", *sources, "--patch", str(corrections.path)]
    return Labeling(index, corrections, compute, classes, "" if data.is_in_memory else shlex.join(words))


def _list_label_issues(run: RunDirectory, index: Index) -> list[Finding]:
    """Return the labels of a run that may be wrong as one finding, worst first, leaving out changed images."""
    known = {(image.path, image.sha256) for image in index.images}
    issues = [issue for issue in run.read_label_issues() or () if (issue.path, issue.sha256) in known]
    if not issues:
        return []
    paths, reasons = tuple(issue.path for issue in issues), tuple(issue.reason for issue in issues)
    advice = "relabel or drop those that are wrong"
    return [Finding("suspected-label-errors", "note", len(issues), "may have the wrong label", advice, paths, reasons)]


def _list_slices(model: RunModel | None, index: Index) -> dict[str, list[int]]:
    """Return the positions of the images in each slice that the run evaluated, over all its evaluated splits.

    Without a run, or if its images have several labels and so no evaluated slices, use slices that need no pixels.
    """
    if model is None or index.several_labels:
        masks = find_slices(record_properties(index.images))
        return {name: np.flatnonzero(mask).tolist() for name, mask in masks.items()}
    slices: dict[str, set[int]] = {}
    for evaluated in model.predictions.values():
        positions = model.find_positions(evaluated.paths)
        for name, mask in evaluated.slice_masks.items():
            members = (positions[row] for row in np.flatnonzero(mask))
            slices.setdefault(name, set()).update(position for position in members if position is not None)
    return {name: sorted(members) for name, members in slices.items()}
