"""`LoadedModel`: the predictor, run, images and thresholds behind a `Classifier`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from sightline.api.argument_types import check_method_types
from sightline.api.dataset import Dataset
from sightline.api.options import Settings
from sightline.api.record_list import format_html_table
from sightline.callbacks import Callback, Progress, no_progress
from sightline.data.indexing import Sources
from sightline.data.types import Index
from sightline.errors import ModelError, OutputError, UsageError, list_some, plural
from sightline.inference import bundle, exported_folder
from sightline.inference.embeddings import identify_manifest, identify_model
from sightline.inference.knn import KnnPredictor
from sightline.inference.manifest import Manifest
from sightline.inference.predictor import Predictor
from sightline.inference.results import Thresholds
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.inference.tta import TTA, TTAPredictor
from sightline.runs import run_images
from sightline.runs.directory import RunDirectory
from sightline.runs.failures import explain_incomplete
from sightline.runs.labeled_images import LabeledImages
from sightline.runs.paths import is_run
from sightline.tasks.protocol import Task, find_task


class LoadedModel:
    """A model and its origin: the `run` that it belongs to, and the `manifest` of its bundle or export, if any.

    What predictions need is read when the model is created, since its files may be moved later: the name of its task,
    its abstention `thresholds` (None before they are fitted), and `tile`, the scale at which masks are predicted in
    tiles, 0 for the whole image at once.
    """

    def __init_subclass__(cls) -> None:
        check_method_types(cls)

    def __init__(
        self,
        predictor: Predictor,
        run: RunDirectory | None = None,
        manifest: Manifest | None = None,
        path: Path | None = None,
    ) -> None:
        if isinstance(predictor, str | Path):
            raise UsageError(f"{type(self).__name__} opens no files: use sightline.load({str(predictor)!r}).")
        self.predictor = predictor
        self.run = run
        self.manifest = manifest
        self.path = path
        self._keras_predictor: KerasPredictor | None = None  # the Keras model, loaded once gradients are needed
        self.trained_on: Dataset | None = None  # the images of the run, if they are in memory and known
        self._run_weights = self._read_run_weights()
        if run is not None:
            config, self.thresholds = run.config, run.read_thresholds()
            self._network, self.task_name, self.tile = config.model.name, config.model.task, config.input.tile
        else:
            stored = None if manifest is None else manifest.thresholds
            self.thresholds = Thresholds.from_dict(stored) if stored else None
            self._network, self.task_name, self.tile = "", "single_label", 0.0
            if manifest is not None:
                self._network, self.task_name, self.tile = manifest.model, manifest.task, manifest.tile

    def check_run_unchanged(self) -> None:
        """Raise `ModelError` if the run is being trained, or its weights have changed since this model was loaded.

        Otherwise, results of this model would be stored as those of another. Raises `OutputError` if nothing can be
        stored in the run.
        """
        if self.run is None or self._run_weights is None:
            return
        if not os.access(self.run.path, os.W_OK):
            raise OutputError(
                f"The evaluation cannot be stored in {self.run.path}, which is not writable: copy the run to another "
                "folder, and evaluate the copy."
            )
        if self.run.is_locked:
            raise ModelError(
                f"The evaluation cannot be stored in {self.run.path}, which another process is writing: wait until it "
                "ends, then evaluate again."
            )
        if self._read_run_weights() != self._run_weights:
            raise ModelError(
                f"The evaluation cannot be stored in {self.run.path}, which has been trained further since its model "
                "was loaded: load and evaluate it again."
            )

    def _read_run_weights(self) -> str | None:
        info = {} if self.run is None else self.run.info
        return (info.get("result") or {}).get("weights_sha256")

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy or a pickle, which predicts the same in any process and working directory.

        Its paths become absolute.
        """
        run = None if self.run is None else RunDirectory(self.run.path.absolute())
        path = None if self.path is None else self.path.absolute()
        return self.__dict__ | {"run": run, "path": path, "_keras_predictor": None, "trained_on": None}

    @property
    def model_path(self) -> Path:
        """The path that the model was loaded from; raises `ModelError` for a model that was built in memory."""
        if isinstance(self.predictor, KnnPredictor):
            raise ModelError(
                "A classifier by nearest neighbors exists in memory only, and no file can hold it: use the model that "
                "it was made from, as sightline.load returns it."
            )
        path = self.path if self.run is None else self.run.path
        if path is None:
            raise ModelError("This classifier was not loaded from a file: use sightline.load.")
        return path

    def require_run(self) -> RunDirectory:
        """Return the run, whose folder has the default places of results; raises `UsageError` for other models."""
        if self.run is None:
            own_run = None if self.path is None else _find_run_of_bundle(self.path)
            hint = "" if own_run is None else f", or give the run {own_run}"
            raise UsageError(f"Only a run has a default folder for results: give one with --out{hint}.")
        return self.run

    @cached_property
    def feature_model_id(self) -> str:
        """The id of the model that computes the features, stored in files of embeddings; see `inference.embeddings`."""
        if self.manifest is not None:
            return identify_manifest(self.manifest)
        if self.run is None or not isinstance(self.predictor, KerasPredictor):
            raise ModelError("This classifier was not loaded from a file: use sightline.load.")
        from sightline.models.describe import weights_sha256  # imported here, since a bundle needs no network

        weights = weights_sha256(self.predictor.model)
        return identify_model(self._network, weights, "float32", self.predictor.preprocess)

    @property
    def task(self) -> Task:
        """The task that the model was trained for; raises `UsageError` if it is of a package that is not installed."""
        try:
            return find_task(self.task_name)
        except UsageError as error:
            raise UsageError(
                f"The model {self.path} has a task that no installed package adds, so it cannot be used here. {error}"
            ) from error

    def save_thresholds(self, thresholds: Thresholds | None) -> None:
        """Save abstention thresholds in the run and its bundle, or in a bundle, zip or file alone; None removes them.

        Raises `UsageError` for the bundle inside a run, which would then contradict its run.
        """
        values = None if thresholds is None else thresholds.to_stored()
        if self.run is not None:
            self.check_run_unchanged()
            self.run.write_thresholds(thresholds)
            if self.run.bundle is not None:
                self.run.update_manifest(thresholds=values)
        elif self.path is not None and self.manifest is not None:
            check_not_in_run(self.path)
            is_bundle = exported_folder.find(self.path) is None
            (bundle if is_bundle else exported_folder).update_manifest_file(self.path, thresholds=values)
            self.manifest = replace(self.manifest, thresholds=values)
        self.thresholds = thresholds

    def labeled_images(
        self, sources: Sources | None = None, progress: Progress = no_progress, *, index: Index | None = None
    ) -> LabeledImages:
        """Return the run's own images or those of `sources`; these are indexed once for all splits.

        For a run on images in memory, `sources` are the run's own images if they include all of them. `index`: see
        `LabeledImages`.
        """
        if index is None and self.run is not None and run_images.is_in_memory(self.run):
            in_memory = sources if sources is not None or self.trained_on is None else self.trained_on.listed_sources
            index = None if in_memory is None else run_images.find_in_memory(self.run, in_memory, progress)
            sources = sources if index is None else None
        return LabeledImages(
            self.run, self.source_run, self.predictor.classes, self.predictor.preprocess, sources, progress, index,
            self.task.targets,
        )  # fmt: skip

    def wrap_labeled(self, data: Dataset | Sources, settings: Settings) -> Dataset:
        """Return labeled images other than the run's own, read with `settings`, by default with its task and tree."""
        dataset, targets = Dataset.wrap(data, set=settings), self.task.targets
        if targets.allows_several and not targets.are_masks:
            return Dataset.wrap(dataset, set={"model.task": self.task.name})
        tree = run_images.choose_tree_options(self.source_run, targets).class_tree
        if not tree or dataset.config.data.class_tree:
            return dataset
        return Dataset.wrap(dataset, set={"data.class_tree": tree})

    @property
    def source_run(self) -> RunDirectory | None:
        """The run of the model, also for a bundle or an export inside a run directory; None otherwise."""
        if self.run is not None or self.path is None or self.manifest is None:
            return self.run
        return run_images.find_source_run(self.path, self.manifest)

    def explain_device(self) -> str:
        """Return the device that the model computes on, and why, as ``device cpu: ...``; see `device` of `load`."""
        device, reason = (getattr(self.predictor, name, "") for name in ("device", "device_reason"))
        return f"device {device or 'cpu'}: {reason or 'that of the runtime of this model.'}"

    def with_tta(self, kind: TTA = "flip") -> Self:
        """Return a copy that averages over 2 (``flip``) or 6 (``flip-shift``) views of each image."""
        averaged = copy(self)
        averaged.predictor = TTAPredictor(self.predictor, self.task.activate, kind)
        averaged.run, averaged.path, averaged.trained_on = self.run, self.path, self.trained_on
        return averaged

    def explanation_predictor(self, method: str | None, callback: Callback) -> Predictor:
        """Return the predictor for an explanation: the run's Keras model if Grad-CAM cannot be computed from its file.

        `callback` receives a message before the Keras model is loaded.
        """
        from sightline.explain.heatmaps import has_gradcam  # imported here, since predictions do not need it

        if self.run is None or method in {"occlusion", "rise"} or has_gradcam(self.predictor):
            return self.predictor
        if self._keras_predictor is None:
            self._keras_predictor = load_keras_predictor(self.run, callback.on_message)
        return self._keras_predictor

    def __repr__(self) -> str:
        place = "" if self.path is None else f"{str(self.path)!r}, "
        return f"{type(self).__name__}({place}{self._describe()})"

    def _describe(self) -> str:
        spec = self.predictor.preprocess
        size = f"{spec.height}x{spec.width}x{spec.channels}"
        classes = self.predictor.classes
        return f"{plural(len(classes), 'class', 'classes')}: {list_some(classes, 5)}; {size} images"

    def _repr_html_(self) -> str:
        rows = [{"property": name, "value": value} for name, value in self._properties().items()]
        return format_html_table(rows, title=type(self).__name__ if self.path is None else str(self.path))

    def _properties(self) -> Mapping[str, str]:
        spec, thresholds = self.predictor.preprocess, self.thresholds
        stored = {} if self.manifest is None else {"model": self.manifest.model, "precision": self.manifest.precision}
        device = getattr(self.predictor, "device", "")
        return {
            **stored,
            **({"device": device} if device else {}),
            "classes": list_some(self.predictor.classes, 20),
            "input": f"{spec.height}x{spec.width}x{spec.channels}, uint8",
            "abstains": "yes, by thresholds of the validation split" if thresholds and thresholds.abstains else "no",
        }


def load_keras_predictor(run: RunDirectory, on_message: Callable[[str], None]) -> KerasPredictor:
    """Return the Keras model of a run; raises `ModelError` if it has no weights yet.

    `on_message` receives a line before Keras starts, which takes seconds.
    """
    if not run.has_model:
        raise ModelError(f"The run {run.path} has no weights yet: {explain_incomplete(run)}.")
    on_message("Loading the Keras model of the run, which takes a few seconds.")
    return KerasPredictor.load(run.path / "model.keras", *run.read_model_spec())


def check_not_in_run(path: Path) -> None:
    """Raise `UsageError` for the bundle inside a run, which must have the thresholds of its run."""
    if (run := _find_run_of_bundle(path)) is not None:
        raise UsageError(
            f"{path} belongs to the run {run} and uses its thresholds: evaluate the run, or a copy of the bundle."
        )


def _find_run_of_bundle(path: Path) -> Path | None:
    """Return the folder of the run whose bundle, or a file of it, is at `path`; None if there is none."""
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    return folder.parent if folder.name == "bundle" and is_run(folder.parent) else None
