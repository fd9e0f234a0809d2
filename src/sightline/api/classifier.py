"""`Classifier`: a trained model in Python, with the same methods and results as the commands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sightline import backend
from sightline.api import load_errors
from sightline.api.explanation import explain
from sightline.callbacks import Progress, no_progress
from sightline.data.indexing import Sources
from sightline.data.types import SPLITS, Index, LabeledSubset, Split
from sightline.errors import ModelError, UsageError, suggest
from sightline.evaluation.evaluator import evaluate_predictor
from sightline.evaluation.leakage import add_leakage
from sightline.evaluation.results import EvaluationResult
from sightline.explain.explanation import Explanation
from sightline.inference import bundle, exported_folder, stream
from sightline.inference.manifest import Manifest
from sightline.inference.predictor import Predictor
from sightline.inference.results import Prediction, Thresholds
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.inference.tta import FlipTTA
from sightline.preprocessing import PreprocessingSpec
from sightline.runs import run_images
from sightline.runs.directory import RunDirectory
from sightline.runs.failures import explain_incomplete
from sightline.runs.labeled_images import LabeledImages

Engine = Literal["onnx", "keras"]
ImageLike = str | Path | bytes | NDArray[np.uint8] | Image.Image


class Classifier:
    """A trained model that classifies images."""

    def __init__(
        self,
        predictor: Predictor,
        run: RunDirectory | None = None,
        manifest: Manifest | None = None,
        path: Path | None = None,
    ) -> None:
        self.predictor = predictor
        self.run = run
        self.manifest = manifest
        self.path = path
        self._saved_thresholds: Thresholds | None = None  # of the original's run, in a copy or a pickle
        self._keras_predictor: KerasPredictor | None = None  # the Keras model, loaded once gradients are needed

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy or a pickle, which predicts alike in any process and working directory.

        The run's path becomes absolute; its thresholds are included in case the run cannot be reached there.
        """
        run = None if self.run is None else RunDirectory(self.run.path.absolute())
        path = None if self.path is None else self.path.absolute()
        return self.__dict__ | {
            "run": run,
            "path": path,
            "_keras_predictor": None,
            "_saved_thresholds": self.thresholds,
        }

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of all probabilities."""
        return self.predictor.classes

    @property
    def preprocess(self) -> PreprocessingSpec:
        """The preprocessing spec."""
        return self.predictor.preprocess

    def with_flip_tta(self) -> Classifier:
        """Return a classifier with flip test-time augmentation, at twice the cost."""
        flipped = Classifier(FlipTTA(self.predictor), self.run, self.manifest, self.path)
        flipped._saved_thresholds = self._saved_thresholds  # its own class
        return flipped

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        top: int = 5,
        set: Sequence[str] = (),  # noqa: A002  # the option's own name
    ) -> list[Prediction]:
        """Return one `Prediction` per image, in order.

        An image is a path (a file, a folder or a glob), encoded bytes, a uint8 array [H, W(, C)] or a Pillow image. An
        unreadable image yields a prediction with only `error` set. `set` may contain ``data.limits.file_mb=MIB``, the
        maximum file size.
        """
        items = stream.make_items(_as_sequence(images), stream.parse_file_limits(set))
        return list(stream.predict(self.predictor, items, top=min(top, len(self.classes)), thresholds=self.thresholds))

    def explain(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        method: str | None = None,
        label: str | None = None,
        out: str | Path | None = None,
        seed: int = 0,
        set: Sequence[str] = (),  # noqa: A002  # the option's own name
        progress: Progress = no_progress,
    ) -> list[Explanation]:
        """Return heat maps of the evidence for `label`, by default the predicted class; see `api.explain`.

        `method` is gradcam, gradcam++, occlusion or rise; with `out`, a folder, a figure per image is written there.
        For `set`, see `predict`.
        """
        items = list(stream.make_items(_as_sequence(images), stream.parse_file_limits(set)))
        folder = None if out is None else Path(out)
        predictor = self.explanation_predictor(method)
        return list(explain(predictor, items, method=method, label=label, out=folder, seed=seed, progress=progress))

    def explanation_predictor(self, method: str | None) -> Predictor:
        """Return the predictor that an explanation method needs: the Keras model for gradients, if there is one."""
        if self.run is None or method in {"occlusion", "rise"} or isinstance(self.predictor, KerasPredictor):
            return self.predictor
        if self._keras_predictor is None:
            self._keras_predictor = _load_keras_predictor(self.run)
        return self._keras_predictor

    def evaluate(
        self,
        sources: Sources | None = None,
        *,
        split: Split | None = None,
        include_training: bool = False,
        allow_missing: bool = False,
        cache: bool = True,
        progress: Progress = no_progress,
    ) -> EvaluationResult:
        """Evaluate the model on labeled images.

        Without `sources`: on the run's own images of `split` (default: test, else validation), split as in training.
        If some are missing or changed, raises `MissingImagesError`, or evaluates the rest with `allow_missing`. With
        `sources`: on their split `split`; if that is None, on their test split if they define splits, else on all
        images. Images that the model was trained or validated on, and near duplicates of them, are excluded as far as
        they are known, unless `include_training`.
        """
        labeled = self.load_labeled_images(
            sources, split=split, include_training=include_training, allow_missing=allow_missing, cache=cache,
            progress=progress,
        )  # fmt: skip
        return add_leakage(
            evaluate_predictor(self.predictor, labeled.subset, rejects=labeled.unreadable, progress=progress), labeled
        )

    def save_thresholds(self, thresholds: Thresholds) -> None:
        """Save abstention thresholds in the run and its bundle, or in a bundle, zip or file without a run.

        Raises `UsageError` for the bundle inside a run, which would then contradict its run.
        """
        if self.run is not None:
            self.run.write_thresholds(thresholds)
            if self.run.bundle is not None:
                self.run.update_manifest(thresholds=thresholds.to_dict())
        elif self.path is not None and self.manifest is not None:
            self.check_can_save_thresholds()
            restate = (
                bundle.update_manifest_file
                if exported_folder.find(self.path) is None
                else exported_folder.update_manifest_file
            )
            restate(self.path, thresholds=thresholds.to_dict())
            self.manifest = replace(self.manifest, thresholds=thresholds.to_dict())

    def check_can_save_thresholds(self) -> None:
        """Raise `UsageError` if thresholds cannot be saved; see `save_thresholds`."""
        if self.run is not None or self.path is None:
            return
        folder = self.path.resolve() if self.path.is_dir() else self.path.resolve().parent
        if folder.name == "bundle" and (folder.parent / "run.json").is_file():
            raise UsageError(
                f"{self.path} belongs to the run {folder.parent} and uses its thresholds: evaluate the run, or a "
                "copy of the bundle."
            )

    @property
    def thresholds(self) -> Thresholds | None:
        """The fitted abstention thresholds: the run's, else the bundle's; None before they are fitted."""
        if self.run is not None:
            return self.run.read_thresholds() if self.run.path.is_dir() else self._saved_thresholds
        stored = None if self.manifest is None else self.manifest.thresholds
        return Thresholds.from_dict(stored) if stored else None

    def load_labeled_images(
        self,
        sources: Sources | None = None,
        *,
        split: Split | None = None,
        include_training: bool = False,
        allow_missing: bool = False,
        cache: bool = True,
        progress: Progress = no_progress,
    ) -> LabeledSubset:
        """Return the labeled images that `evaluate` uses."""
        return self.labeled_images(sources, progress).load(
            split, include_training=include_training, allow_missing=allow_missing, cache=cache
        )

    def labeled_images(
        self,
        sources: Sources | None = None,
        progress: Progress = no_progress,
        *,
        index: Index | None = None,
    ) -> LabeledImages:
        """Return the run's own images or those of `sources`; these are indexed once for all splits.

        `index`: see `LabeledImages`.
        """
        return LabeledImages(self.run, self.source_run, self.classes, self.preprocess, sources, progress, index)

    @property
    def source_run(self) -> RunDirectory | None:
        """The run of the model, also for a bundle or an export inside a run directory; None otherwise."""
        if self.run is not None or self.path is None or self.manifest is None:
            return self.run
        return run_images.find_source_run(self.path, self.manifest)


def load(path: str | Path, *, engine: Engine = "onnx") -> Classifier:
    """Load a run, a bundle, its ``.zip`` or ``.onnx`` file, or the folder of another format that `export` wrote.

    The files are verified. Raises `ModelError` if the model cannot be used, `MissingExtraError` if the runtime of its
    format is not installed. A SavedModel contains arbitrary TensorFlow code: load only your own.

    A complete run predicts with its bundle, in ONNX Runtime. It uses its Keras model if there is no bundle (the run was
    interrupted) or if `engine` is "keras", as gradients require.
    """
    path = Path(path)
    if (folder := exported_folder.find(path)) is not None:
        if engine == "keras":
            raise ModelError(f"{folder} contains no Keras model: give the run that it was exported from.")
        manifest, runner = exported_folder.load(folder)
        return Classifier(runner, manifest=manifest, path=folder)
    if bundle.is_bundle(path):
        loaded_bundle, predictor = bundle.load(path)
        if engine == "keras":
            raise ModelError(f"{path} contains no Keras model: give the run that it belongs to.")
        return Classifier(predictor, manifest=loaded_bundle.manifest, path=path)
    if not (path / "run.json").exists():
        raise ModelError(load_errors.explain_not_a_model(path))
    run = RunDirectory.open(path)
    if engine == "onnx" and run.bundle is not None:
        loaded_bundle, predictor = bundle.load(run.bundle)
        return Classifier(predictor, run, loaded_bundle.manifest, path)
    backend.tune_malloc()
    return Classifier(_load_keras_predictor(run), run, path=path)


def _load_keras_predictor(run: RunDirectory) -> KerasPredictor:
    if not run.has_model:
        raise ModelError(f"The run {run.path} has no weights yet: {explain_incomplete(run)}.")
    return KerasPredictor.load(run.path / "model.keras", *run.read_model_spec())


def _as_sequence(images: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    return [images] if isinstance(images, str | Path | bytes | np.ndarray | Image.Image) else images


def parse_split(text: str | None) -> Split | None:
    """Return `text` as a split name; raises `UsageError` if it is not one."""
    if text is None:
        return None
    for split in SPLITS:
        if text == split:
            return split
    raise UsageError(f"There is no split {text!r}.{suggest(text, SPLITS)}")
