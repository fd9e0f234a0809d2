"""Outputs of a classifier on images other than the evaluated ones: other splits, out-of-distribution images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sightline.api.classifier import Classifier
from sightline.callbacks import Progress
from sightline.data.dataset import decode_images
from sightline.data.types import Index, LabeledSubset, Split, Subset
from sightline.errors import DataError, MissingImagesError, UsageError
from sightline.evaluation import report
from sightline.evaluation.ood import OODResult
from sightline.inference.predictor import ModelOutputs
from sightline.inference.results import Thresholds
from sightline.inference.tta import TTAPredictor
from sightline.runs import folds
from sightline.runs.labeled_images import LabeledImages
from sightline.seeding import make_generator


@dataclass(frozen=True, slots=True)
class AllowedImages:
    """What an evaluation accepts beyond the default: `training` images, or a split with `missing` images."""

    training: bool = False
    missing: bool = False


DEFAULT_ALLOWED = AllowedImages()
MAX_OOD_IMAGES = 1000  # maximum OOD images; they estimate an AUROC to about 0.01


@dataclass(frozen=True, slots=True)
class OutputReader:
    """Runs a classifier on images other than the evaluated ones: other splits of `labeled_images`, OOD images."""

    classifier: Classifier
    labeled_images: LabeledImages
    allowed: AllowedImages
    progress: Progress
    cache: bool

    def load(self, images: LabeledImages, split: Split | None) -> tuple[LabeledSubset, ModelOutputs]:
        """Return the images of a split and their outputs; validation images of the run may have stored outputs.

        Outputs are stored if the model was later trained on the validation images.
        """
        if images.is_own and (split == "validation" or (split is None and not self._has_test)):
            if self.is_folded:
                return self._load_out_of_fold()
            if self._is_refit:
                return self._load_stored(
                    images.load("validation", allow_missing=self.allowed.missing, cache=self.cache)
                )
        labeled = images.load(
            split, include_training=self.allowed.training, allow_missing=self.allowed.missing, cache=self.cache
        )
        outputs = self.classifier.task.collect_outputs(self.classifier.predictor, labeled.subset, self.progress)
        return labeled, report.add_groups(outputs, labeled.subset.paths, labeled.groups)

    @property
    def is_folded(self) -> bool:
        """Whether out-of-fold predictions replace those for validation images."""
        run = self.classifier.run
        return run is not None and folds.is_folded(run.config)

    @property
    def _is_refit(self) -> bool:
        """Whether the head was also fitted to the validation images, after it had predicted them."""
        run = self.classifier.run
        return run is not None and bool((run.info.get("result") or {}).get("refit"))

    @property
    def _has_test(self) -> bool:
        run = self.classifier.run
        return run is not None and any(row.split == "test" for row in run.read_data() or ())

    def _load_out_of_fold(self) -> tuple[LabeledSubset, ModelOutputs]:
        run = self.classifier.run
        assert run is not None
        labeled = self.labeled_images.load("train", allow_missing=self.allowed.missing, cache=self.cache)
        count = run.config.split.folds
        leaked, fold_by_path = folds.find_leaked_contents(run, count), folds.list_folds(run, count)
        return self._load_stored(replace(labeled, split="validation", leaked=leaked, folds=fold_by_path))

    def _load_stored(self, labeled: LabeledSubset) -> tuple[LabeledSubset, ModelOutputs]:
        run = self.classifier.run
        assert run is not None
        if isinstance(self.classifier.predictor, TTAPredictor):
            raise UsageError(
                "--tta does not apply to predictions that are stored, since the model was trained on the images "
                "afterwards: leave it out."
            )
        outputs = folds.read_outputs(run, labeled.subset.paths, labeled.subset.labels)
        return labeled, report.add_groups(outputs, labeled.subset.paths, labeled.groups)

    def collect_outputs(self, split: Split, *, strict: bool = False) -> ModelOutputs | None:
        """Return the model outputs for a split; None if it is not available.

        `strict`: raise if some of its images are missing, instead of returning None.
        """
        try:
            if split == "validation" and self.labeled_images.is_own and (self.is_folded or self._is_refit):
                return self.load(self.labeled_images, split)[1]
            labeled = self.labeled_images.load(
                split, include_training=self.allowed.training, allow_missing=self.allowed.missing, cache=self.cache
            )
        except MissingImagesError:
            if strict and not self.allowed.missing:
                raise
            return None
        except DataError:
            return None
        if not len(labeled.subset):
            return None
        outputs = self.classifier.task.collect_outputs(
            self.classifier.predictor, labeled.subset, self.progress, f"evaluating ({split})"
        )
        return report.add_groups(outputs, labeled.subset.paths, labeled.groups)


def evaluate_ood(
    reader: OutputReader,
    outputs: ModelOutputs,
    held_out: ModelOutputs | None,
    thresholds: Thresholds | None,
    index: Index,
) -> OODResult:
    """Compare with OOD images, whose labels are ignored; the run's own images among them are excluded.

    `held_out` are the outputs for the validation images, if there are any.
    """
    run = reader.classifier.source_run
    run_hashes = set() if run is None else {row.sha256 for row in run.read_data() or ()}
    indices = [i for i, image in enumerate(index.images) if image.sha256 not in run_hashes]
    if not indices:
        raise DataError(f"All {len(index.images):,} images of {index.name} belong to the run: give others with --ood.")
    note = f"{len(index.images) - len(indices)} images that belong to the run were excluded."
    note = "" if len(indices) == len(index.images) else note
    if len(indices) > MAX_OOD_IMAGES:
        sampled = np.sort(make_generator(0, "ood").permutation(len(indices))[:MAX_OOD_IMAGES]).tolist()
        indices = [indices[i] for i in sampled]
    predictor, task = reader.classifier.predictor, reader.classifier.task
    decoded = decode_images(index.select(indices), predictor.preprocess, keep=reader.cache, progress=reader.progress)
    count = len(decoded.rows)
    samples = Subset(decoded.pixels.array, decoded.rows, np.zeros(count, np.int32), ("",) * count)
    ood_outputs = task.collect_outputs(predictor, samples, reader.progress, "evaluating (OOD images)").outputs
    ood_result = report.evaluate_ood(outputs, ood_outputs, held_out, index.name, thresholds, task.compute_energy)
    return replace(ood_result, note=" ".join(filter(None, (ood_result.note, note))))
