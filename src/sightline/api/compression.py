"""`compress`: search for the smallest non-inferior model of a run, and record all candidates."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from sightline import _io
from sightline._keras.process_state import restore_torch_settings
from sightline.api.compression_result import CompressionResult
from sightline.api.loading import load
from sightline.callbacks import Callback
from sightline.compress import distill, noninferiority
from sightline.compress.budget import Budget
from sightline.compress.candidates import CompressionTask
from sightline.compress.finetune import MAX_EPOCH_FACTOR, FineTuner
from sightline.compress.noninferiority import Comparison
from sightline.compress.search import METHODS, CompressionSearch
from sightline.compress.search_dir import CompressionCandidate, SearchDir, pareto_front
from sightline.config import RunConfig
from sightline.config.stage_epochs import count_epochs
from sightline.data.checks import leakage
from sightline.data.dataset import DecodedDataset, build_dataset
from sightline.data.indexing import Sources, build_index
from sightline.data.recorded_images import hash_images
from sightline.data.types import Index, Split
from sightline.errors import DataError, Interrupted, UsageError, list_some, plural, suggest
from sightline.evaluation import bootstrap
from sightline.inference import bundle
from sightline.inference.results import ThresholdRequest, Thresholds
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.models.build import build_shapes_only
from sightline.models.describe import weights_sha256
from sightline.runs import calibration, environment, finalize, run_images
from sightline.runs.directory import RunDirectory
from sightline.runs.facts import specify_graph
from sightline.tasks.protocol import Task, find_task

MIN_STEPS = 100  # minimum steps of a fine-tuning, if the number of epochs is not given


@restore_torch_settings()
def compress(
    model: Path | str,
    *,
    data: Sources | None = None,
    out: Path | str | None = None,
    budget: Budget | None = None,
    methods: Sequence[str] = METHODS,
    epochs: int | None = None,
    callback: Callback | None = None,
) -> CompressionResult:
    """Search for the smallest version of the run `model` that meets `budget`.

    `data`: labeled images to use instead of the run's own; images of the run keep their split. `out`: the folder of
    the search, by default ``<run>/compressed``; an interrupted search continues there, from the last checkpoint of the
    training that was interrupted. `epochs`: epochs of each fine-tuning, up to three times as many for a new head or a
    student; by default a quarter of the run's epochs, more for few images, from 2 to 20. Raises `SightlineError`s.
    """
    callback, budget = callback or Callback(), budget or Budget()
    for name in methods:
        if name not in METHODS:
            raise UsageError(f"There is no compression method {name!r}.{suggest(name, METHODS)}")
    if epochs is not None and epochs < 0:
        raise UsageError(f"epochs is the number of epochs of each fine-tuning, at least 0, not {epochs}.")
    run = RunDirectory.open(Path(model))
    config = run.config
    path = _io.output_path(out) if out is not None else run.path / "compressed"
    if out is None:
        _io.refuse_links(run.path, path)
    SearchDir.check_place(path)  # before Keras is loaded, which takes seconds
    task = find_task(config.model.task)
    selected_methods = _select_methods(methods, task, callback)
    environment.check_packages(config)
    environment.start_backend(config.device)
    predictor = load(run.path, engine="keras").predictor
    assert isinstance(predictor, KerasPredictor)
    dataset, index = _load_data(run, config, predictor, data, callback)
    finetune_epochs = _choose_epochs(config, dataset) if epochs is None else epochs
    if not {"int8", "float16"}.issuperset(selected_methods):
        callback.on_message(
            f"epochs: {finetune_epochs} per fine-tuning, at most {MAX_EPOCH_FACTOR * finetune_epochs} for "
            "a new head or a student"
        )
    sha256 = weights_sha256(predictor.model)
    search_key = {
        "weights_sha256": sha256, "data": dataset.name, "images": len(dataset.images),
        "content": hash_images(dataset.images, dataset.splits, are_masks=task.targets.are_masks),
        "methods": list(selected_methods),
        "epochs": finetune_epochs, "max_drop": budget.max_drop, "non_inferiority_margin": noninferiority.MARGIN,
        "standard_errors": noninferiority.STANDARD_ERRORS,
    }  # fmt: skip
    if task.image_score != "accuracy" or dataset.groups:
        search_key |= {"score": task.image_score, "min_scores": noninferiority.MIN_SCORES}
    request = _choose_targets(run, config)
    if request:
        search_key |= {"targets": request.to_dict()}
    search_dir = SearchDir(path, search_key, len(dataset.images))
    tuner = _build_tuner(config, predictor, dataset, selected_methods, finetune_epochs, path, callback)
    compression = _build_task(run, config, predictor, dataset, index, sha256, request)
    search = CompressionSearch(compression, tuner, search_dir, budget, selected_methods, callback)
    with search_dir.lock():
        try:
            search.run()
        except Interrupted as error:
            raise Interrupted(f"{error} The same command continues from there.") from None
        return _build_result(search, search_dir, task, dataset, callback)


def _choose_targets(run: RunDirectory, config: RunConfig) -> ThresholdRequest:
    """Return the targets of the run's thresholds: those of its settings, or of the last `evaluate` that fitted some."""
    thresholds = run.read_thresholds()
    if thresholds is None:
        return ThresholdRequest.from_config(config.evaluation)
    request = ThresholdRequest.from_thresholds(thresholds)
    return replace(request, positive=request.positive or config.evaluation.positive_class)


def _choose_epochs(config: RunConfig, data: DecodedDataset) -> int:
    """Return a quarter of the run's epochs, or enough for `MIN_STEPS` steps with few images, from 2 to 20."""
    train = config.train
    steps = math.ceil(data.counts()["train"] / train.batch_size)
    epochs = [count_epochs(train, stage) for stage in train.stages] or [train.epochs]
    return min(max(round(sum(epochs) / 4), math.ceil(MIN_STEPS / steps), 2), 20)


def _select_methods(methods: Sequence[str], task: Task, callback: Callback) -> tuple[str, ...]:
    """Return the methods in order; if all are named, those that the task does not support are left out.

    Raises `UsageError` if fewer are named, and one of them is not supported.
    """
    selected = tuple(name for name in METHODS if name in methods)
    supported = tuple(name for name in selected if name not in task.unsupported_methods)
    for name, reason in task.unsupported_methods.items():
        if name in selected and selected != METHODS:
            others = ",".join(other for other in METHODS if other not in task.unsupported_methods)
            raise UsageError(
                f"The method {name} is not possible with model.task={task.name}: {reason}. Choose from --methods "
                f"{others}."
            )
        if name in selected:
            callback.on_message(f"{name} is left out: {reason}")
    return supported


def _load_data(
    run: RunDirectory, config: RunConfig, predictor: KerasPredictor, data: Sources | None, callback: Callback
) -> tuple[DecodedDataset, Index]:
    index = _index_images(run, data, callback)
    if config.split.folds and all(image.split != "validation" for image in index.images):
        raise DataError(
            f"{index.name} has no validation images to evaluate candidates on: a run with folds is trained on all of "
            "its images, so give others with --data, in a folder validation/ beside train/."
        )
    split = replace(config.split, folds=0, fold=None)
    dataset = build_dataset(
        index, predictor.preprocess, split, config.seed, targets=find_task(config.model.task).targets,
        keep=config.data.cache, progress=callback.on_progress, threads=config.device.threads or None,
    )  # fmt: skip
    if dataset.classes != predictor.classes:
        raise DataError(
            f"The images of {index.name} have the classes {list_some(dataset.classes, 8)}, but the model has "
            f"{list_some(predictor.classes, 8)}: they must be the same."
        )
    if not dataset.counts()["validation"]:
        raise DataError(
            f"{index.name} has no validation images to evaluate candidates on: train with "
            "split.validation above 0, or give images with --data."
        )
    return dataset, index


def _index_images(run: RunDirectory, data: Sources | None, callback: Callback) -> Index:
    """Index the run's own images, or other ones, in which images of the run keep their splits."""
    if data is None:
        matched = run_images.match_run_images(run, callback.on_progress)
        run_images.raise_if_incomplete(run, matched, "images", ", or give others with --data")
        return matched.index
    targets = find_task(run.config.model.task).targets
    options = run_images.choose_tree_options(run, targets)
    index = build_index(data, callback.on_progress, options=options, targets=targets)
    rows = run.read_data() or ()
    index = run_images.restore_splits(rows, index)
    known_hashes = {row.sha256 for row in rows}
    count = sum(p.sha256 in known_hashes for p in index.images)
    callback.on_message(
        f"{count} of {plural(len(index.images), 'image')} of {index.name} belong to the run and keep their splits"
    )
    return index


def _build_tuner(
    config: RunConfig, predictor: KerasPredictor, data: DecodedDataset, methods: Sequence[str], epochs: int, path: Path,
    callback: Callback,
) -> FineTuner:  # fmt: skip
    model, train = predictor.model, data.subset("train")
    height, width, channels = model.input.shape[1:]
    model_spec = specify_graph(config, height, width, channels, len(data.classes))

    @cache
    def compute_teacher() -> distill.TeacherLogits:
        return distill.compute_teacher_logits(model, train, config, path / "teacher.npy", callback.on_progress)

    return FineTuner(
        config, train, data.subset("validation"), epochs, build_shapes_only(model_spec).backbone,
        any(stage.depth >= 0 for stage in config.train.stages), compute_teacher if "distill" in methods else None,
        callback,
    )  # fmt: skip


def _build_task(
    run: RunDirectory,
    config: RunConfig,
    predictor: KerasPredictor,
    data: DecodedDataset,
    index: Index,
    weights_hash: str,
    request: ThresholdRequest,
) -> CompressionTask:
    task = find_task(config.model.task)

    def pack(model: Any, graph: bytes, predictor: OnnxPredictor, fields: Mapping[str, Any]) -> bundle.Bundle:
        labeled = data.labeled_subset("validation")
        sample = finalize.sample_validation(task, predictor, labeled.subset, labeled.groups)
        return finalize.build_bundle(
            model, graph, predictor, data, index, config, sample, weights_sha256=weights_sha256(model), **fields
        )

    step = {"step": "train", "run": run.path.name, "model": config.model.name, "weights_sha256": weights_hash}
    return CompressionTask(
        predictor.model,
        config.model,
        config.seed,
        predictor.classes,
        predictor.preprocess,
        data,
        config.device.threads,
        step,
        pack,
        partial(calibration.calibrate_temperature, task) if config.bundle.calibrate else None,
        request,
        leakage.leaked_contents(run.read_leaks(), "validation"),
    )


def _build_result(
    search: CompressionSearch, search_dir: SearchDir, task: Task, data: DecodedDataset, callback: Callback
) -> CompressionResult:
    candidates, best = search.candidates, search.best_candidate()
    nearest, misses = search.nearest_candidate()
    comparison = None
    if best is not None:
        comparison = _test_once(search_dir, best, task, data, callback)
        search_dir.select_best(best, best.name if best.precision == "float32" else best.parent or "")
    else:
        search_dir.clear_best()
    drop = search.budget.max_drop
    result = CompressionResult(
        search_dir.path, candidates, pareto_front(candidates), best, comparison, nearest, tuple(misses), drop
    )
    result.write()
    return result


def _test_once(
    search_dir: SearchDir, candidate: CompressionCandidate, task: Task, data: DecodedDataset, callback: Callback
) -> Comparison:
    """Compare the chosen model with the original one; each chosen model is tested only once."""
    comparisons = search_dir.read_comparisons()
    if candidate.name not in comparisons:
        if comparisons:
            callback.on_message(
                f"The test split was already used for {', '.join(comparisons)}, under another budget: the more often "
                "it is used, the more optimistic its result for the selected model."
            )
        comparisons[candidate.name] = _test_noninferiority(search_dir, candidate, task, data, callback)
        search_dir.write_comparisons(comparisons)
    return comparisons[candidate.name]


def _test_noninferiority(
    search_dir: SearchDir, candidate: CompressionCandidate, task: Task, data: DecodedDataset, callback: Callback
) -> Comparison:
    """Compare the chosen model with the original one on the test split, or on the validation split without one."""
    split: Split = "test" if data.counts()["test"] else "validation"
    if split == "validation":
        callback.on_message(
            "There are no test images: comparing on the validation images that selected the small model."
        )
    labeled, scores = data.labeled_subset(split), []
    for name in ("original", candidate.name):
        loaded, predictor = bundle.load(search_dir.folder(name) / "bundle")
        outputs = task.collect_outputs(predictor, labeled.subset, callback.on_progress, f"{split} with {name}")
        stored = loaded.manifest.thresholds
        scores.append(task.score_images(predictor.classes, outputs, Thresholds.from_dict(stored) if stored else None))
    groups = bootstrap.number_groups(labeled.subset.paths, labeled.groups)
    return noninferiority.compare_images(task.image_score, scores[0], scores[1], split, groups)


_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def build_budget(max_drop: float, max_size: str | None, max_latency: str | None, max_params: int | None) -> Budget:
    """Return the budget of these options; `max_drop` is in percentage points. Raises `UsageError`."""
    if not 0 <= max_drop <= 100:  # also rejects NaN
        raise UsageError(f"max_drop is a drop in percentage points, from 0 to 100, not {max_drop:g}.")
    if max_params is not None and max_params < 1:
        raise UsageError(f"max_params is a number of parameters, at least 1, not {max_params}.")
    return Budget(
        max_drop / 100,
        None if max_size is None else parse_size(max_size),
        None if max_latency is None else parse_milliseconds(max_latency),
        max_params,
    )


def list_methods(methods: Any) -> list[str]:
    """Return the names of methods, from a list or separated by commas; raises `UsageError` if there are none."""
    listed = methods.split(",") if isinstance(methods, str) else methods
    if not isinstance(listed, Iterable) or not all(isinstance(name, str) for name in listed):
        raise UsageError(f"methods must be a string or a list of strings, not {methods!r}.")
    names = [name.strip() for name in listed if name.strip()]
    if not names:
        raise UsageError(f"No compression method is given: choose from {', '.join(METHODS)}.")
    return names


def parse_size(text: str) -> int:
    """Parse a size in bytes such as ``2MB`` or ``500 KiB``; raises `UsageError`.

    >>> parse_size("2MB"), parse_size("1.5 KiB")
    (2000000, 1536)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise UsageError(f"{text!r} is not a size: give a number and a unit (B, KB, MB, GB), as in 2MB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def parse_milliseconds(text: str) -> float:
    """Parse a duration in milliseconds such as ``5ms`` or ``0.1s``; raises `UsageError`.

    >>> parse_milliseconds("5ms"), parse_milliseconds("0.5 s")
    (5.0, 500.0)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|us)?\s*", text)
    if match is None:
        raise UsageError(f"{text!r} is not a duration: give milliseconds, as in 5ms.")
    return float(match[1]) * {"ms": 1, "s": 1000, "us": 0.001, None: 1}[match[2]]
