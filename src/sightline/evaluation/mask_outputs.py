"""The data that a mask evaluation keeps of a model's outputs: counts and means per image, and a sample of the pixels.

Only one batch's outputs are in memory at a time. Each image is reduced to its confusion counts, its boundary pixels, a
reliability diagram and a few means; the masks of the worst images are kept for the report, and random pixels for the
temperature.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import metrics
from sightline.callbacks import Progress, no_progress
from sightline.data.masks import VOID
from sightline.data.types import Subset
from sightline.errors import DataError
from sightline.evaluation import boundaries, calibration, segmentation_metrics
from sightline.evaluation.error_analysis import MAX_EXAMPLES
from sightline.evaluation.scoring import check_probabilities
from sightline.evaluation.validation_sample import ValidationSample
from sightline.inference.mask_quality import estimate_iou
from sightline.inference.predictor import ModelOutputs, Outputs, Predictor, find_streams
from sightline.inference.runner import iterate_results
from sightline.preprocessing import PreprocessingSpec
from sightline.seeding import make_generator

CALIBRATION_PIXELS = 200_000  # pixels of all images: neighbors hardly differ, so more would add nothing


@dataclass(frozen=True, slots=True)
class MaskOutputs(ModelOutputs):
    """The outputs of a model of masks for N images; `outputs` has the means over the pixels of each image.

    `labels` are the masks uint8 [N, H, W]. For each image there are `confusions` int64 [N, K, K], true classes in rows;
    `boundaries` int64 [N, K, 4] as `count_boundaries` returns them; the mean cross-entropy of a pixel in nats, `losses`
    float64 [N], NaN without any; `reliability` float64 [N, B, 3], the pixels, the sum of their confidences and the
    correct ones in each of B bins; and the IoU expected from its probabilities, `quality` float64 [N].

    `pixel_logits` float32 [M, K] and `pixel_labels` int32 [M] are those of random pixels, from the images at
    `pixel_images` int32 [M]. `worst_masks` are the predicted masks uint8 [H, W] of the images of the lowest IoU, by
    position.
    """

    confusions: NDArray[np.int64]
    boundaries: NDArray[np.int64]
    losses: NDArray[np.float64]
    reliability: NDArray[np.float64]
    quality: NDArray[np.float64]
    pixel_logits: NDArray[np.float32]
    pixel_labels: NDArray[np.int32]
    pixel_images: NDArray[np.int32]
    worst_masks: Mapping[int, NDArray[np.uint8]]

    @property
    def calibration(self) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """The logits float32 [M, K] and the classes int32 [M] of the sampled pixels."""
        return self.pixel_logits, self.pixel_labels

    def select(self, rows: NDArray[np.int64]) -> MaskOutputs:
        """Return the outputs for the images at `rows` [n], in that order; each at most once."""
        new_rows = np.full(len(self.quality), -1, np.int32)
        new_rows[rows] = np.arange(len(rows))
        pixel_images = new_rows[self.pixel_images]
        is_selected = pixel_images >= 0
        worst = {int(new_rows[i]): mask for i, mask in self.worst_masks.items() if new_rows[i] >= 0}
        means = Outputs(*(values[rows] for values in self.outputs.arrays))
        return MaskOutputs(
            means, self.labels[rows], self.confusions[rows], self.boundaries[rows], self.losses[rows],
            self.reliability[rows], self.quality[rows], self.pixel_logits[is_selected],
            self.pixel_labels[is_selected], pixel_images[is_selected], worst,
        )  # fmt: skip


def sample_masks(outputs: MaskOutputs, groups: NDArray[np.int64] | None = None) -> ValidationSample | None:
    """Return the sample of these validation images and their `groups` [N] for a bundle; None if they are too few."""
    ious = segmentation_metrics.compute_image_iou(outputs.confusions)
    return ValidationSample.from_masks(outputs.outputs.features, outputs.quality, ious, groups)


def join_outputs(subsets: Sequence[MaskOutputs]) -> MaskOutputs:
    """Return the outputs for the images of all `subsets`, one after the other; at least one.

    The result keeps as many sampled pixels and worst masks as outputs for all images at once would have.
    """

    def join(name: str) -> Any:
        return np.concatenate([getattr(outputs, name) for outputs in subsets])

    masks: dict[int, NDArray[np.uint8]] = {}
    images, start = [], 0
    for outputs in subsets:
        masks |= {i + start: mask for i, mask in outputs.worst_masks.items()}
        images.append(outputs.pixel_images + np.int32(start))
        start += len(outputs.quality)
    pixel_images, confusions = np.concatenate(images), join("confusions")
    rows = np.sort(make_generator(0, "joined pixels").permutation(len(pixel_images))[:CALIBRATION_PIXELS])
    ious = segmentation_metrics.compute_image_iou(confusions)
    worst = sorted(masks, key=lambda i: (ious[i], i))[:MAX_EXAMPLES]
    means = zip(*(outputs.outputs.arrays for outputs in subsets), strict=True)
    return MaskOutputs(
        Outputs(*(np.concatenate(values) for values in means)), join("labels"), confusions, join("boundaries"),
        join("losses"), join("reliability"), join("quality"), join("pixel_logits")[rows], join("pixel_labels")[rows],
        pixel_images[rows], {i: masks[i] for i in worst},
    )  # fmt: skip


def collect_mask_outputs(
    predictor: Predictor, samples: Subset, progress: Progress = no_progress, task: str = "evaluating"
) -> MaskOutputs:
    """Run `predictor` on `samples`, whose labels are masks, and return the outputs that an evaluation needs.

    Raises `DataError` if there are no images, and for probabilities that are not finite or do not sum to 1.
    """
    if not len(samples):
        raise DataError("There are no images to evaluate the model on.")
    collector = MaskCollector(len(predictor.classes), samples, predictor.preprocess)
    for batch, outputs in iterate_results(
        predictor.outputs, samples, task=task, progress=progress, streams=find_streams(predictor)
    ):
        collector.add(batch.positions, outputs)
    return collector.finish()


class MaskCollector:
    """Collects `MaskOutputs` from batches of outputs for `samples`, each image in one of them.

    If the images have sizes, the padding that `preprocess` added is not counted.
    """

    def __init__(self, classes: int, samples: Subset, preprocess: PreprocessingSpec) -> None:
        self._classes, self._samples, self._preprocess = classes, samples, preprocess
        count = len(samples)
        self._confusions = np.zeros((count, classes, classes), np.int64)
        self._boundaries = np.zeros((count, classes, 4), np.int64)
        self._losses, self._quality = np.zeros(count), np.zeros(count)
        self._reliability = np.zeros((count, calibration.BINS, 3))
        self._means: list[tuple[NDArray[np.float32], ...]] = [()] * count
        self._pixels: list[tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]] = []
        self._worst: list[tuple[float, int, NDArray[np.uint8]]] = []
        self._quota = math.ceil(CALIBRATION_PIXELS / max(count, 1))

    def add(self, positions: NDArray[np.int64], outputs: Outputs) -> None:
        """Add the outputs for the images at `positions`, [n, H, W, K]."""
        check_probabilities(outputs.probabilities, [self._samples.paths[position] for position in positions])
        rows = zip(*outputs.arrays, strict=True)
        for position, (probabilities, logits, features) in zip(positions.tolist(), rows, strict=True):
            self._add_image(position, probabilities, logits, features)

    def _add_image(
        self,
        position: int,
        probabilities: NDArray[np.float32],
        logits: NDArray[np.float32],
        features: NDArray[np.float32],
    ) -> None:
        mask = self._samples.labels[position]
        predicted = probabilities.argmax(-1).astype(np.uint8)
        confusion = segmentation_metrics.count_confusions(predicted, mask, self._classes)
        self._confusions[position] = confusion
        self._boundaries[position] = boundaries.count_boundaries(predicted, mask, self._classes)
        contents = [self._cut_padding(position, values) for values in (probabilities, logits)]
        self._quality[position] = estimate_iou(contents[0])
        means = [values.mean((0, 1), dtype=np.float64).astype(np.float32) for values in contents]
        self._means[position] = (*means, features.copy())
        known = mask != VOID
        true, rows = mask[known].astype(np.int32), probabilities[known]
        self._losses[position] = metrics.cross_entropy(rows, true) if len(true) else math.nan
        self._reliability[position] = calibration.sum_bins(rows.max(1, initial=0), predicted[known] == true)
        self._sample_pixels(position, logits, mask)
        self._keep_worst(position, confusion, predicted)

    def _cut_padding(self, position: int, values: NDArray[np.float32]) -> NDArray[np.float32]:
        sizes = self._samples.sizes
        if sizes is None or self._preprocess.resize != "pad":
            return values
        return self._preprocess.cut_padding(values, *sizes[position].tolist())

    def _sample_pixels(self, position: int, logits: NDArray[np.float32], mask: NDArray[np.uint8]) -> None:
        chosen = make_generator(0, "calibration pixels", position).permutation(mask.size)[: self._quota]
        labels = mask.reshape(-1)[chosen]
        known = labels != VOID
        true = labels[known].astype(np.int32)
        rows = logits.reshape(-1, logits.shape[-1])[chosen][known]
        self._pixels.append((rows, true, np.full(len(true), position, np.int32)))

    def _keep_worst(self, position: int, confusion: NDArray[np.int64], predicted: NDArray[np.uint8]) -> None:
        iou = float(segmentation_metrics.compute_image_iou(confusion))
        if not math.isfinite(iou):
            return
        heapq.heappush(self._worst, (-iou, -position, predicted))  # the best of these first; positions are distinct
        if len(self._worst) > MAX_EXAMPLES:
            heapq.heappop(self._worst)

    def finish(self) -> MaskOutputs:
        """Return the outputs for all images."""
        means = Outputs(*(np.stack(values) for values in zip(*self._means, strict=True)))
        logits, labels, images = (np.concatenate(values) for values in zip(*self._pixels, strict=True))
        return MaskOutputs(
            means, self._samples.labels, self._confusions, self._boundaries, self._losses, self._reliability,
            self._quality, logits, labels, images, {-position: mask for _, position, mask in self._worst},
        )  # fmt: skip
