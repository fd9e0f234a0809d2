"""`learning_curve`: a metric against the number of labeled images, and the estimated gain from more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from sightline import backend
from sightline._keras.process_state import restore_torch_settings
from sightline.api import owned_png
from sightline.api.argument_types import check_types
from sightline.api.dataset import Dataset
from sightline.api.options import Settings, merge_settings
from sightline.api.record_list import build_frame, format_html_table, format_text_table
from sightline.callbacks import Callback
from sightline.config import StageConfig
from sightline.data.indexing import Sources
from sightline.data.types import SPLITS, Subset
from sightline.errors import DataError, UsageError, plural
from sightline.evaluation.learning_curve import CHECKED_FACTOR, TASKS, LabelGain, LearningCurve, measure_learning_curve
from sightline.models import registry
from sightline.progress import show_progress
from sightline.report import plotting
from sightline.report.learning_curve_plot import plot_learning_curve
from sightline.runs import network_setup
from sightline.runs.facts import THIS_MACHINE, DataFacts
from sightline.runs.network_setup import PreparedRun
from sightline.runs.resolve import apply_steps, resolve_request
from sightline.runs.steps import (
    choose_device,
    choose_value_range,
    choose_weights,
    is_for_small_network,
    keep_features_exact,
)
from sightline.runs.train_request import TrainRequest
from sightline.tasks.protocol import find_task
from sightline.training import stage_features

HEAD = StageConfig("head", unfreeze=0)
CHOICES = (choose_device, choose_weights, choose_value_range, keep_features_exact)  # choices that affect the features
NOT_OF_MASKS = (
    "A learning curve fits linear heads to the features of whole images, but masks need a decoder, which would have to "
    "be trained again for each number of images. Compare the out-of-fold mean IoU of `sightline train --folds 2` and "
    "`--folds 5`, which train on half and on four fifths of the images, or set model.task=multi_label for a curve of "
    "the classes in each mask."
)
FEW_IMAGES = 10  # a class with fewer different images gets a note
VISIBLE_GAIN = 0.0005  # the smallest gain that rounds to 0.1 points


@dataclass(frozen=True, slots=True, repr=False)
class LearningCurveReport:
    """The learning curve of a data set, which a notebook shows as a table.

    Attributes:
        name: The data set.
        network: The network whose features the heads were trained on.
        curve: The measured points, the fitted power law, and the predicted gains.
        notes: The limitations of these results, one sentence each.
        figure: The path of the figure, None without one.
    """

    name: str
    network: str
    curve: LearningCurve
    notes: tuple[str, ...] = ()
    figure: str | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row for each measured and each predicted point, with the columns of ``--format csv``.

        The metric is the column ``accuracy``, or ``mean_average_precision`` for several labels per image.
        """
        measured = [
            self._row("measured", point.labels, point.value)
            | {"low": point.interval.low, "high": point.interval.high, "more": None}
            for point in self.curve.points
        ]
        predicted = [
            self._row("predicted", gain.labels, gain.value)
            | {"low": None, "high": None, "more": gain.more}
            | {"gain": gain.gain, "gain_low": gain.interval.low, "gain_high": gain.interval.high}
            for gain in self.curve.gains
        ]
        return measured + predicted

    def _row(self, kind: str, labels: int, value: float) -> dict[str, Any]:
        per_class = {} if self.has_several_labels else {"labels_per_class": labels / self.curve.num_classes}
        return {"kind": kind, "labels": labels} | per_class | {self.curve.metric: value}

    @property
    def has_several_labels(self) -> bool:
        """Whether an image has several labels, so that `labels` counts labeled images."""
        return self.curve.metric == "mean_average_precision"

    def to_frame(self) -> Any:
        """Return the rows as a pandas DataFrame; raises `MissingExtraError` without pandas."""
        return build_frame(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``learning-curve --format json``."""
        return (
            {"name": self.name, "network": self.network}
            | self.curve.to_dict()
            | {"notes": list(self.notes), "figure": self.figure}
        )

    def list_sentences(self) -> Iterator[str]:
        """Yield sentences on the fitted law, the gain from more labels, and the limitations of both."""
        law = self.curve.law
        if law is not None:
            x, y = ("labels", "error") if not self.has_several_labels else ("images", "1 - mean average precision")
            if law.scale:
                yield f"{y} = {law.asymptote:.3f} + {law.scale:.3g} x {x}^-{law.exponent:.2f}"
            else:
                yield f"{y} = {law.asymptote:.3f} whatever the number of {x}: the curve is flat"
        yield from (self._describe_gain(gain) for gain in self.curve.gains)
        if self.curve.no_gain_reason is not None:
            yield self.curve.no_gain_reason
        yield from self.notes

    def __repr__(self) -> str:
        return "\n".join([self._describe(), format_text_table(self.rows), *self.list_sentences()])

    def _describe(self) -> str:
        return f"{self.name}: heads on features of {self.network}, {plural(self.curve.held_out, 'held-out image')}"

    def _describe_gain(self, gain: LabelGain) -> str:
        low, high = (100 * end for end in gain.interval)
        what, unit = ("labels", "points")
        if self.has_several_labels:
            what, unit = "labeled images", "points of mean average precision"
        text = f"{gain.more:,} more {what} would bring about {100 * gain.gain:+.1f} {unit} ({low:.1f} to {high:.1f})"
        if gain.interval.low < VISIBLE_GAIN:
            text += ": whether they would help is unknown"
        if gain.labels > CHECKED_FACTOR * self.curve.labels:
            text += "; predictions this far were not checked"
        return text

    def _repr_html_(self) -> str:
        return format_html_table(self.rows, title=f"{self._describe()}. {'. '.join(self.list_sentences())}.")


@check_types
def learning_curve(
    data: Dataset | Sources,
    *,
    more: Sequence[int] = (),
    recipe: str = "transfer",
    figure: str | Path | None = None,
    seed: int = 0,
    patch: str | Path | None = None,
    column: Settings | None = None,
    allow: Sequence[str] = (),
    set: Settings = (),
    cache: bool = True,
    progress: bool = True,
    callback: Callback | None = None,
) -> LearningCurveReport:
    """Measure how the accuracy grows with the number of labels, and predict what more labels would bring.

    With several labels per image (``set={"model.task": "multi_label"}``), the metric is the mean average precision of
    the classes, and labeled images are counted.

    Heads are trained on the features of a pretrained network, on growing subsets of the images, and evaluated on images
    that they were not trained on: those of the validation and test splits if the source defines them, else every image
    once, a tenth at a time. A power law is fitted to the errors (see the [guide](learning-curve.md)).

    Args:
        data: A [`Dataset`][sightline.Dataset], or paths and names of data sets.
        more: Numbers of additional labels (images, if each has several labels) to predict the gain of; by default a
            quarter of the present number, and the same number again.
        recipe: The recipe whose pretrained network computes the features.
        figure: A PNG file to write.
        seed: Chooses the images of the subsets.
        patch: A file of data fixes to apply, as written by [`Dataset.check`][sightline.Dataset.check].
        column: The columns of a table, as in ``{"label": "breed"}``.
        allow: Kinds of data errors to accept, such as ``"split-leakage"``.
        set: Settings of how images are read and grouped and of the network, as in ``{"split.group": "folder"}``.
        cache: Whether to keep decoded images and features on disk.
        progress: Whether to show progress on standard error.
        callback: Receives the progress events in place of the display.

    Returns:
        The measured and the predicted values of the metric, with intervals.

    Raises:
        DataError: If there are too few images, or they cannot be used.
        UsageError: If the recipe has no pretrained network.
        OutputError: If the figure cannot be written.

    Example:
        ```python
        curve = sl.learning_curve("photos/", more=[200])
        print(curve)
        ```
    """
    counts: Any = more  # may differ from the annotated type
    if not isinstance(counts, Iterable) or any(not isinstance(count, Integral) or count < 1 for count in counts):
        raise UsageError(f"more is a list of numbers of additional labels, at least 1 each, not {more!r}.")
    if figure is not None:
        plotting.check_packages()
        figure = owned_png.check_output(figure, "--figure")
    dataset = Dataset.wrap(data)
    shortcuts = {"data.patch": None if patch is None else str(patch), "data.cache": None if cache else False}
    assignments = merge_settings(dataset.settings, shortcuts, set, column, allow)
    with show_progress(progress, callback) as display:
        request = TrainRequest.create(dataset.sources, recipe, None, [*assignments, f"seed={seed}"])
        backend.tune_malloc(request.merge_layers().device.backend)  # before the first thread
        report = _measure(request, dataset.sources, more, display)
    if figure is not None:
        owned_png.save_owned_png(Path(figure), plot_learning_curve(report.curve, report.name))
        report = replace(report, figure=str(figure))
    return report


@restore_torch_settings()
def _measure(request: TrainRequest, sources: Sources, more: Sequence[int], callback: Callback) -> LearningCurveReport:
    prepared, facts = prepare_images(request, sources, callback)
    data = prepared.data
    held_out = np.array([image.split not in (None, "train") for image in data.images])
    curve = measure_learning_curve(
        compute_features(prepared, callback), data.groups or [image.sha256 for image in data.images],
        held_out if held_out.any() else None, task=prepared.config.model.task, more=more, seed=prepared.config.seed,
        threads=prepared.config.device.threads or None, progress=callback.on_progress,
    )  # fmt: skip
    return LearningCurveReport(data.name, prepared.config.model.name, curve, tuple(_list_notes(prepared, facts)))


def prepare_images(request: TrainRequest, sources: Sources, callback: Callback) -> tuple[PreparedRun, DataFacts]:
    """Index, check and decode the images as `train` does, and specify the pretrained network."""
    inputs = resolve_request(request, sources, callback)
    facts = DataFacts.from_index(inputs.index, find_task(inputs.config.model.task), callback.on_progress)
    config = apply_steps(inputs.config, CHOICES, facts, THIS_MACHINE, callback)
    if find_task(config.model.task).targets.are_masks:
        raise UsageError(NOT_OF_MASKS)
    if config.model.task not in TASKS:
        raise UsageError(
            f"A learning curve is for the tasks {', '.join(TASKS)}, but model.task is {config.model.task}: choose one "
            "of them, as in --set model.task=single_label."
        )
    if config.model.weights == "none":
        raise UsageError(
            f"The recipe {config.recipe} trains {config.model.name} from random weights, but a learning curve needs "
            "the features of a pretrained network: use --recipe transfer."
        )
    return network_setup.prepare_inputs(replace(inputs, config=config), callback.on_progress), facts


def compute_features(prepared: PreparedRun, callback: Callback) -> Subset:
    """Return the features float32 [N, F] of all images, in their order, from the cache if it has them."""
    data = prepared.data
    if (count := len(data.images) - sum(len(data.list_positions(split)) for split in SPLITS)) > 0:
        raise DataError(
            f"A learning curve needs a leaf class for each image, but {count:,} of {data.name} have a parent "
            "class: give these images a leaf class, or leave them out."
        )
    images = Subset(data.pixels, data.rows, data.labels, tuple(image.path for image in data.images))
    network = network_setup.build_network(prepared.spec, data)
    features = stage_features.extract_features(
        network, [HEAD], images, images.head(0), prepared.config, callback.on_progress, callback.on_message
    )
    if features is None or features.train.pixels.ndim != 2:
        raise UsageError(
            f"{registry.get_entry(prepared.config.model.name).name} has a head of several layers, but a learning curve "
            "needs a network with a linear head, such as --recipe transfer."
        )
    return features.train


def _list_notes(prepared: PreparedRun, facts: DataFacts) -> Iterator[str]:
    data, list_classes = prepared.data, find_task(prepared.config.model.task).targets.list_classes
    if is_for_small_network(facts):
        yield (
            f"the images have about {facts.median_side} pixels: `sightline train` trains a small network from scratch, "
            "whose curve differs"
        )
    pairs = {(label, image.sha256) for image in data.images for label in list_classes(image.label)}
    different = Counter(label for label, _ in pairs)
    smallest = min(data.classes, key=lambda label: different[label])
    if different[smallest] < FEW_IMAGES:
        yield (
            f"class {smallest!r} has only {plural(different[smallest], 'different image')}: how well it would be "
            "learned with more cannot be predicted"
        )
