"""From a trained Keras model to the bundle; a run's metrics are computed from the exported file itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import process
from sightline.callbacks import Callback, Progress
from sightline.config import RunConfig
from sightline.data.checks import leakage
from sightline.data.dataset import DecodedDataset
from sightline.data.types import OUT_OF_FOLD, SPLITS, Index, LabeledSubset, Split, Subset
from sightline.evaluation.bootstrap import number_groups
from sightline.evaluation.mask_outputs import MaskOutputs, sample_masks
from sightline.evaluation.report import add_groups
from sightline.evaluation.results import TaskReport, TaskResult
from sightline.evaluation.validation_sample import ValidationSample
from sightline.explain.heatmaps import has_gradcam
from sightline.export import keras_to_onnx
from sightline.inference import bundle, runner
from sightline.inference.bundle import Bundle
from sightline.inference.manifest import Manifest, ReferenceExample
from sightline.inference.parity import Parity, Tolerance
from sightline.inference.predictor import ModelOutputs, Predictor
from sightline.inference.reference_examples import average_pixels, hash_pixels
from sightline.inference.results import ThresholdRequest, Thresholds
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.models.describe import count_parameters, describe_model, weights_sha256
from sightline.preprocessing import PreprocessingSpec, encode_png, inspect_image
from sightline.runs import folds, mask_folds, report_images, run_report
from sightline.runs.calibration import calibrate
from sightline.runs.directory import RunDirectory
from sightline.runs.early_outputs import EarlyOutputs
from sightline.runs.network_setup import PreparedRun
from sightline.runs.predictions import list_image_values
from sightline.seeding import make_generator
from sightline.tasks.protocol import EvaluationInputs, Task, find_task
from sightline.training.early_features import EarlyFeatures
from sightline.training.loop import FitResult

MAX_PARITY_IMAGES = 256  # training images for the comparison, if there is no validation split
MAX_SAMPLED = 500  # limit on validation images in the sample of a smaller or converted model
CANDIDATES_PER_CLASS = 8  # files per class among which the smallest become reference examples


@dataclass(frozen=True, slots=True)
class FinalModel:
    """The contents of a report: evaluations by split, and the report on the last split, None without one.

    `no_bundle_reason` explains why there is no bundle; None if there is one.
    """

    evaluations: Mapping[Split, TaskResult]
    last_report: TaskReport | None
    no_bundle_reason: str | None
    temperature: float
    weights_sha256: str


def finalize(
    run: RunDirectory,
    prepared: PreparedRun,
    model: Any,
    fit_result: FitResult,
    callback: Callback,
    early: EarlyFeatures | None = None,
) -> FinalModel:
    """Calibrate the Keras model, export it, evaluate the file on the held-out splits, and write the bundle.

    If the outputs of the file differ from the model's, the file is not written, and the model itself is evaluated.
    Layers of the file that have already run on these images (`early`) are not run again. The data shown in the report
    is also written, so that the report needs neither the model nor the images.
    """
    config, data, classes, preprocess = prepared.config, prepared.data, prepared.data.classes, prepared.preprocess
    task = find_task(config.model.task)
    run.clear_results()
    labeled = _label_held_out(run, data, config)
    calibrated = calibrate(run, prepared, model, fit_result, labeled["validation"].subset)
    run.write_model(model, classes, preprocess)
    weights = weights_sha256(model)
    process.trim_memory()
    graph, predictor = export_onnx(model, classes, preprocess, config.device.threads)
    known = EarlyOutputs.open(graph, predictor, early)
    outputs_by_split = collect_split_outputs(task, predictor, data, callback.on_progress, known)
    compared = outputs_by_split if calibrated.other_outputs is None else {}
    agreement = check_parity(task, model, predictor, data, calibrated.logits, compared)
    no_bundle_reason = parity_failure(agreement)
    keras_predictor = KerasPredictor(model, classes, preprocess)
    if no_bundle_reason is not None:
        run.update(no_bundle_reason=no_bundle_reason)
        callback.on_message(f"No bundle is written: {no_bundle_reason}.")
        outputs_by_split = collect_split_outputs(task, keras_predictor, data, callback.on_progress)
    outputs_by_split = _complete_outputs(outputs_by_split, calibrated.other_outputs, labeled)
    held_out = outputs_by_split.get("validation")
    thresholds = _fit_thresholds(run, prepared, held_out, callback)
    reports = {
        split: _evaluate_split(run, prepared, split, outputs_by_split, labeled[split], thresholds)
        for split in outputs_by_split
    }
    evaluations = {split: report.evaluation for split, report in reports.items()}
    if no_bundle_reason is None:
        run.write_bundle(
            build_bundle(
                model, graph, predictor, data, prepared.index, config,
                _sample_held_out(task, labeled["validation"], held_out if calibrated.other_outputs is None else None),
                model=config.model.name, temperature=calibrated.temperature, parity=agreement.to_dict(),
                metrics=metrics_by_split(evaluations, config), thresholds=thresholds and thresholds.to_stored(),
                weights_sha256=weights,
            )
        )  # fmt: skip
    explained = predictor if no_bundle_reason is None and has_gradcam(predictor) else keras_predictor
    del graph, predictor
    process.trim_memory()
    run_report.write_network(run, describe_model(model, config.model.name))
    report_images.write_leak_images(run, run.read_leaks(), data)
    split = run_report.find_reported_split(reports)
    report = None if split is None else reports[split]
    if split is not None and report is not None:
        report_images.write_examples(run, report, labeled[split].subset, explained)
    return FinalModel(evaluations, report, no_bundle_reason, calibrated.temperature, weights)


def _label_held_out(run: RunDirectory, data: DecodedDataset, config: RunConfig) -> dict[Split, LabeledSubset]:
    """Return the validation and test images; with folds, all training images replace the validation images."""
    leaks = run.read_leaks()
    labeled: dict[Split, LabeledSubset] = {
        split: replace(data.labeled_subset(split), leaked=leakage.leaked_contents(leaks, split)) for split in SPLITS[1:]
    }
    if folds.is_folded(config):
        leaked = folds.find_leaked_contents(run, config.split.folds)
        labeled["validation"] = replace(
            data.labeled_subset("train"), split="validation", leaked=leaked,
            folds=folds.list_folds(run, config.split.folds),
        )  # fmt: skip
    return labeled


def _complete_outputs(
    outputs_by_split: Mapping[Split, ModelOutputs], other: ModelOutputs | None, labeled: Mapping[Split, LabeledSubset]
) -> dict[Split, ModelOutputs]:
    """Return the outputs with the groups of their images; `other` replace those of the validation split."""
    if other is not None:
        rest: dict[Split, ModelOutputs] = {k: v for k, v in outputs_by_split.items() if k != "validation"}
        outputs_by_split = {"validation": other, **rest}
    return {
        split: add_groups(outputs, labeled[split].subset.paths, labeled[split].groups)
        for split, outputs in outputs_by_split.items()
    }


def _fit_thresholds(
    run: RunDirectory, prepared: PreparedRun, held_out: ModelOutputs | None, callback: Callback
) -> Thresholds | None:
    """Fit the thresholds that the settings request, and save them; None without any, or without validation images."""
    request = ThresholdRequest.from_config(prepared.config.evaluation)
    if held_out is None:
        if request:
            callback.on_message(
                "No thresholds are fitted for the targets of evaluation: there are no validation images."
            )
        return None
    thresholds = find_task(prepared.config.model.task).fit_thresholds(prepared.data.classes, held_out, request)
    if thresholds is not None:
        run.write_thresholds(thresholds)
    return thresholds


def _evaluate_split(
    run: RunDirectory,
    prepared: PreparedRun,
    split: Split,
    outputs_by_split: Mapping[Split, ModelOutputs],
    labeled: LabeledSubset,
    thresholds: Thresholds | None,
) -> TaskReport:
    held_out = OUT_OF_FOLD if folds.is_folded(prepared.config) else "validation"
    name = held_out if split == "validation" else split
    inputs = EvaluationInputs(
        prepared.data.classes, outputs_by_split[split], labeled, name, outputs_by_split.get("validation"), thresholds,
        ThresholdRequest.from_config(prepared.config.evaluation), held_out,
    )  # fmt: skip
    report: TaskReport = find_task(prepared.config.model.task).evaluate(inputs)
    run.write_evaluation(split, report.evaluation, report.to_dict(), list_image_values(report))
    outputs, is_held_out = outputs_by_split[split], split == ("validation" if name == OUT_OF_FOLD else "test")
    if prepared.config.split.folds and is_held_out and isinstance(outputs, MaskOutputs):
        mask_folds.write_outputs(run, split, labeled.subset.paths, prepared.data.classes, outputs)
    return report


def export_onnx(
    model: Any, classes: tuple[str, ...], preprocess: PreprocessingSpec, threads: int
) -> tuple[bytes, OnnxPredictor]:
    """Convert a trained Keras model to ONNX; return the file and its predictor."""
    graph = keras_to_onnx.convert_model(model)
    return graph, OnnxPredictor(graph, classes, preprocess, threads)


def collect_split_outputs(
    task: Task,
    predictor: Predictor,
    data: DecodedDataset,
    progress: Progress,
    known: EarlyOutputs | None = None,
) -> dict[Split, ModelOutputs]:
    """Return the model outputs on the non-empty validation and test splits; outputs that are `known` are reused."""
    outputs_by_split: dict[Split, ModelOutputs] = {}
    for split in SPLITS[1:]:
        if not len(samples := data.subset(split)):
            continue
        outputs = None if known is None else known.find(samples)
        outputs_by_split[split] = (
            task.collect_outputs(predictor, samples, progress, f"evaluating ({split})")
            if outputs is None
            else ModelOutputs(outputs, samples.labels)
        )
    return outputs_by_split


def check_parity(
    task: Task,
    model: Any,
    predictor: OnnxPredictor,
    data: DecodedDataset,
    logits: Any,
    outputs_by_split: Mapping[Split, ModelOutputs],
) -> Parity:
    """Compare a Keras model with its exported file on the validation split, where `logits` are the model's outputs.

    Without such logits, both run on up to `MAX_PARITY_IMAGES` images: on training images if there is no validation
    split, and on validation images, in batches, for a model of masks.
    """
    are_masks = task.targets.are_masks
    if "validation" in outputs_by_split and not are_masks:
        validation_outputs = outputs_by_split["validation"]
        return task.compare(task.activate(logits), validation_outputs.outputs.probabilities, validation_outputs.labels)
    subset = data.subset("validation" if "validation" in outputs_by_split else "train")
    subset = subset.sample_evenly(MAX_PARITY_IMAGES)
    streams, keras_predictor = predictor.streams, KerasPredictor(model, predictor.classes, predictor.preprocess)
    size = None if streams is None else streams.rows
    forms = (
        runner.iterate_results(keras_predictor.probabilities, subset, batch_size=size),
        runner.iterate_results(predictor.probabilities, subset, batch_size=size, streams=streams),
    )
    return task.compare_batches(
        (first, second, batch.labels) for (batch, first), (_, second) in zip(*forms, strict=True)
    )


def parity_failure(parity_result: Parity) -> str | None:
    """Return why no bundle is written, if the outputs of the exported file differ from the trained model's."""
    reasons = parity_result.list_failures(Tolerance())
    if not reasons:
        return None
    return (
        f"the outputs of the exported file differ from the model's: on {parity_result.count} "
        f"images {' and '.join(reasons)}"
    )


def build_bundle(
    keras_model: Any,
    graph: bytes,
    predictor: OnnxPredictor,
    data: DecodedDataset,
    index: Index,
    config: RunConfig,
    sample_file: Mapping[str, bytes],
    **manifest_fields: Any,
) -> Bundle:
    """Assemble the bundle of a run configured as `config`; `manifest_fields` are the other fields of its `Manifest`.

    It includes the sample of the validation images in `sample_file`, if there is one: see `make_sample_file`.
    """
    positive = {"positive": config.evaluation.positive_class} if config.evaluation.positive_class else {}
    examples, files = _choose_reference_examples(data, index, predictor, config.bundle.num_reference_examples)
    manifest = Manifest(
        classes=predictor.classes,
        preprocess=predictor.preprocess,
        task=config.model.task,
        parameters=count_parameters(keras_model),
        data={"name": data.name, "counts": dict(data.counts())} | positive,
        reference_examples=examples,
        version=metadata.version("sightline"),
        recipe=config.recipe,
        tile=config.input.tile,
        **manifest_fields,
    )
    if config.bundle.validation_sample:
        files |= sample_file
    return bundle.make(manifest, graph, files)


def _sample_held_out(task: Task, labeled: LabeledSubset, outputs: ModelOutputs | None) -> dict[str, bytes]:
    if outputs is None:
        return {}
    return make_sample_file(outputs, task, number_groups(labeled.subset.paths, labeled.groups))


def sample_validation(
    task: Task, predictor: Predictor, validation: Subset, group_by_path: Mapping[str, str]
) -> dict[str, bytes]:
    """Return the file of a bundle with a sample of up to `MAX_SAMPLED` validation images, at least one, at random."""
    rows = make_generator(0, "validation sample", "images").permutation(len(validation))[:MAX_SAMPLED]
    subset = validation.select(rows)
    return make_sample_file(task.collect_outputs(predictor, subset), task, number_groups(subset.paths, group_by_path))


def make_sample_file(outputs: ModelOutputs, task: Task, groups: NDArray[np.int64] | None) -> dict[str, bytes]:
    """Return the file of a bundle with a sample of these validation images by name; empty for too few.

    `groups` [N] are the groups of the images, if there are any.
    """
    if isinstance(outputs, MaskOutputs):
        sample = sample_masks(outputs, groups)
    else:
        several, probabilities = task.targets.allows_several, outputs.outputs.probabilities
        correct = None if several or outputs.labels.ndim != 1 else probabilities.argmax(1) == outputs.labels
        labels = outputs.labels.astype(bool) if several else None
        sample = ValidationSample.from_outputs(outputs.outputs, correct, labels, groups)
    return {} if sample is None else {bundle.SAMPLE_FILE: sample.to_bytes()}


def metrics_by_split(evaluations: Mapping[Split, TaskResult], config: RunConfig) -> dict[str, Any]:
    """Return the metrics of each split in the form of the manifest; with folds, out-of-fold metrics under that name."""
    names = {"validation": OUT_OF_FOLD} if folds.is_folded(config) else {}
    return {names.get(split, split): value.summarize() for split, value in evaluations.items()}


def _choose_reference_examples(
    data: DecodedDataset, index: Index, predictor: OnnxPredictor, count: int
) -> tuple[tuple[ReferenceExample, ...], dict[str, bytes]]:
    """Choose the smallest validation (else training) file of each class, then the next ones."""
    index_by_hash = {p.sha256: i for i, p in enumerate(index.images)}
    split: Split = "validation" if "validation" in data.splits else "train"
    by_class: dict[str, list[tuple[int, bytes]]] = {}
    for i in map(int, data.list_positions(split)):
        label = data.images[i].label
        class_files = by_class.get(label, [])
        if len(class_files) < CANDIDATES_PER_CLASS and (class_files or len(by_class) < count):
            by_class[label] = [*class_files, (i, encode_image(index.read(index_by_hash[data.images[i].sha256])))]
    ranked = [sorted(files_of_class, key=lambda pair: len(pair[1])) for _, files_of_class in sorted(by_class.items())]
    ordered = [
        candidates[turn] for turn in range(CANDIDATES_PER_CLASS) for candidates in ranked if turn < len(candidates)
    ][:count]
    decoded = [
        (i, predictor.preprocess.decode(encoded), to_portable_file(predictor, encoded)) for i, encoded in ordered
    ]
    examples, files = [], {}
    for number, (i, pixels, (stored, suffix)) in enumerate(decoded):
        name = f"reference/{number}.{suffix}"
        files[name] = stored
        probabilities = tuple(map(float, average_pixels(predictor.probabilities(pixels[None]))[0]))
        examples.append(ReferenceExample(name, data.images[i].label, hash_pixels(pixels), probabilities))
    return tuple(examples), files


def to_portable_file(predictor: OnnxPredictor, encoded: bytes) -> tuple[bytes, str]:
    """Return a file and its suffix; HEIF becomes PNG, because a bundle must load without pillow-heif."""
    if inspect_image(encoded).format == "HEIF":
        return encode_image(predictor.preprocess.decode(encoded)), "png"
    return encoded, inspect_image(encoded).format.lower()


def encode_image(content: Any) -> bytes:
    """Return an image's encoded bytes; pixels in memory are encoded as PNG."""
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content)
    return encode_png(content[..., 0] if content.shape[2:] == (1,) else content)
