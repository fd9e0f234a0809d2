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
from sightline.data.index import Sources
from sightline.errors import ModelError, UsageError, suggest
from sightline.evaluation.evaluate import evaluate
from sightline.evaluation.leaked import noted
from sightline.explanation.result import Explanation
from sightline.prediction import bundle, exported, stream
from sightline.prediction.base import Predictor
from sightline.prediction.keras import KerasPredictor
from sightline.prediction.manifest import Manifest
from sightline.prediction.views import Mirrored
from sightline.preprocess import Preprocess
from sightline.records import (
    PARTS,
    Evaluation,
    Index,
    Labelled,
    Part,
    Prediction,
    Progress,
    Thresholds,
    no_progress,
)
from sightline.run import Run
from sightline.workflow import images, unknown
from sightline.workflow.ending import unfinished
from sightline.workflow.explain import explain
from sightline.workflow.labeled import LabeledImages

Engine = Literal["onnx", "keras"]
Pictures = str | Path | bytes | NDArray[np.uint8] | Image.Image


class Classifier:
    """A trained model that classifies images."""

    def __init__(
        self,
        predictor: Predictor,
        run: Run | None = None,
        manifest: Manifest | None = None,
        path: Path | None = None,
    ) -> None:
        self.predictor = predictor
        self.run = run
        self.manifest = manifest
        self.path = path
        self._kept: Thresholds | None = None  # of the original's run, in a copy or a pickle
        self._trained: KerasPredictor | None = None  # the Keras model, loaded once gradients are needed

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy or a pickle, which predicts alike in any process and working directory.

        The run's path becomes absolute; its thresholds are included in case the run cannot be reached there.
        """
        run = None if self.run is None else Run(self.run.path.absolute())
        path = None if self.path is None else self.path.absolute()
        return self.__dict__ | {"run": run, "path": path, "_trained": None, "_kept": self.thresholds}

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of all probabilities."""
        return self.predictor.classes

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing spec."""
        return self.predictor.preprocess

    def mirrored(self) -> Classifier:
        """Return a classifier with flip test-time augmentation, at twice the cost."""
        twin = Classifier(Mirrored(self.predictor), self.run, self.manifest, self.path)
        twin._kept = self._kept  # its own class
        return twin

    def predict(
        self,
        pictures: Pictures | Iterable[Pictures],
        *,
        top: int = 5,
        set: Sequence[str] = (),  # noqa: A002  # the option's own name
    ) -> list[Prediction]:
        """Return one `Prediction` per image, in order.

        An image is a path (a file, a folder or a glob), encoded bytes, a uint8 array [H, W(, C)] or a Pillow image. An
        unreadable image yields a prediction with only `error` set. `set` may contain ``data.limits.file_mb=MIB``, the
        maximum file size.
        """
        items = stream.as_items(_many(pictures), stream.file_limits(set))
        return list(stream.predict(self.predictor, items, top=min(top, len(self.classes)), thresholds=self.thresholds))

    def explain(
        self,
        pictures: Pictures | Iterable[Pictures],
        *,
        method: str | None = None,
        label: str | None = None,
        out: str | Path | None = None,
        seed: int = 0,
        set: Sequence[str] = (),  # noqa: A002  # the option's own name
        progress: Progress = no_progress,
    ) -> list[Explanation]:
        """Return heat maps of the evidence for `label`, by default the predicted class; see `workflow.explain`.

        `method` is gradcam, gradcam++, occlusion or rise; with `out`, a folder, a figure per image is written there.
        For `set`, see `predict`.
        """
        items = list(stream.as_items(_many(pictures), stream.file_limits(set)))
        folder = None if out is None else Path(out)
        by = self.explained_by(method)
        return list(explain(by, items, method=method, label=label, out=folder, seed=seed, progress=progress))

    def explained_by(self, method: str | None) -> Predictor:
        """Return the predictor that an explanation method needs: the Keras model for gradients, if there is one."""
        if self.run is None or method in {"occlusion", "rise"} or isinstance(self.predictor, KerasPredictor):
            return self.predictor
        if self._trained is None:
            self._trained = _trained(self.run)
        return self._trained

    def evaluate(
        self,
        sources: Sources | None = None,
        *,
        split: Part | None = None,
        include_training: bool = False,
        allow_missing: bool = False,
        cache: bool = True,
        progress: Progress = no_progress,
    ) -> Evaluation:
        """Evaluate the model on labeled images.

        Without `sources`: on the run's own images of `split` (default: test, else validation), split as in training.
        If some are missing or changed, raises `MissingImagesError`, or evaluates the rest with `allow_missing`. With
        `sources`: on their split `split`; if that is None, on their test split if they define splits, else on all
        images. Images that the model was trained or validated on, and near duplicates of them, are excluded as far as
        they are known, unless `include_training`.
        """
        found = self.labelled(
            sources, split=split, include_training=include_training, allow_missing=allow_missing, cache=cache,
            progress=progress,
        )  # fmt: skip
        return noted(evaluate(self.predictor, found.samples, rejects=found.rejects, progress=progress), found)

    def keep(self, thresholds: Thresholds) -> None:
        """Save abstention thresholds in the run and its bundle, or in a bundle, zip or file without a run.

        Raises `UsageError` for the bundle inside a run, which would then contradict its run.
        """
        if self.run is not None:
            self.run.write_thresholds(thresholds)
            if self.run.bundle is not None:
                self.run.restate_bundle(thresholds=thresholds.to_dict())
        elif self.path is not None and self.manifest is not None:
            self.check_keeping()
            restate = bundle.restate if exported.find(self.path) is None else exported.restate
            restate(self.path, thresholds=thresholds.to_dict())
            self.manifest = replace(self.manifest, thresholds=thresholds.to_dict())

    def check_keeping(self) -> None:
        """Raise `UsageError` if thresholds cannot be saved; see `keep`."""
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
            return self.run.read_thresholds() if self.run.path.is_dir() else self._kept
        kept = None if self.manifest is None else self.manifest.thresholds
        return Thresholds.from_dict(kept) if kept else None

    def labelled(
        self,
        sources: Sources | None = None,
        *,
        split: Part | None = None,
        include_training: bool = False,
        allow_missing: bool = False,
        cache: bool = True,
        progress: Progress = no_progress,
    ) -> Labelled:
        """Return the labeled images that `evaluate` uses."""
        return self.labeled_images(sources, progress).labelled(
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
        return LabeledImages(self.run, self.home, self.classes, self.preprocess, sources, progress, index)

    @property
    def home(self) -> Run | None:
        """The run of the model, also for a bundle or an export inside a run directory; None otherwise."""
        if self.run is not None or self.path is None or self.manifest is None:
            return self.run
        return images.home(self.path, self.manifest)


def load(path: str | Path, *, engine: Engine = "onnx") -> Classifier:
    """Load a run, a bundle, its ``.zip`` or ``.onnx`` file, or the folder of another format that `export` wrote.

    The files are verified. Raises `ModelError` if the model cannot be used, `MissingExtraError` if the runtime of its
    format is not installed. A SavedModel contains arbitrary TensorFlow code: load only your own.

    A complete run predicts with its bundle, in ONNX Runtime. It uses its Keras model if there is no bundle (the run was
    interrupted) or if `engine` is "keras", as gradients require.
    """
    path = Path(path)
    if (folder := exported.find(path)) is not None:
        if engine == "keras":
            raise ModelError(f"{folder} contains no Keras model: give the run that it was exported from.")
        manifest, runner = exported.load(folder)
        return Classifier(runner, manifest=manifest, path=folder)
    if bundle.is_bundle(path):
        found, predictor = bundle.load(path)
        if engine == "keras":
            raise ModelError(f"{path} contains no Keras model: give the run that it belongs to.")
        return Classifier(predictor, manifest=found.manifest, path=path)
    if not (path / "run.json").exists():
        raise ModelError(unknown.reason(path))
    run = Run.open(path)
    if engine == "onnx" and run.bundle is not None:
        found, predictor = bundle.load(run.bundle)
        return Classifier(predictor, run, found.manifest, path)
    backend.keep_freed_memory()
    return Classifier(_trained(run), run, path=path)


def _trained(run: Run) -> KerasPredictor:
    if not run.has_model:
        raise ModelError(f"The run {run.path} has no weights yet: {unfinished(run)}.")
    return KerasPredictor.load(run.path / "model.keras", *run.read_model_facts())


def _many(pictures: Pictures | Iterable[Pictures]) -> Iterable[Pictures]:
    return [pictures] if isinstance(pictures, str | Path | bytes | np.ndarray | Image.Image) else pictures


def part_name(text: str | None) -> Part | None:
    """Return `text` as a split name; raises `UsageError` if it is not one."""
    if text is None:
        return None
    for part in PARTS:
        if text == part:
            return part
    raise UsageError(f"There is no split {text!r}.{suggest(text, PARTS)}")
