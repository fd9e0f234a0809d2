"""`preview_images`: a labeled grid of a data set's images, original or augmented as in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sightline import _io, backend
from sightline._keras.process_state import restore_torch_settings
from sightline.api import owned_png
from sightline.callbacks import Callback
from sightline.config import RunConfig
from sightline.data.indexing import Sources, build_index
from sightline.data.types import Index
from sightline.errors import DataError, ImageError, UsageError
from sightline.preprocessing import PreprocessingSpec, fit_size
from sightline.report import plotting
from sightline.report.image_grid import plot_grid
from sightline.runs.facts import THIS_MACHINE, DataFacts
from sightline.runs.resolve import apply_steps, build_preprocess, inspection_preprocess, merge_recipe
from sightline.runs.steps import IMMEDIATE_STEPS, choose_value_range
from sightline.runs.train_request import TrainRequest
from sightline.seeding import make_generator
from sightline.tasks.protocol import find_task
from sightline.training.augment import mixup, pipeline
from sightline.training.optimizers import smooth_labels

COLUMNS = 5  # images per row, or augmented versions of each image
DEFAULT_COUNT, DEFAULT_AUGMENTED_COUNT = 10, 4  # default numbers of images
MAX_SIDE = 256  # maximum longer side in pixels

LabeledPixels = tuple[NDArray[np.uint8], str]


@dataclass(frozen=True, slots=True)
class PreviewResult:
    """The figure that was drawn, which a notebook shows.

    Attributes:
        figure: The path of the PNG file.
        classes: All classes of the data set.
        count: The number of images shown.
    """

    figure: str
    classes: tuple[str, ...]
    count: int

    def _repr_png_(self) -> bytes:
        return Path(self.figure).read_bytes()


@restore_torch_settings()
def preview_images(
    sources: Sources,
    *,
    out: Path | str | None = None,
    count: int | None = None,
    seed: int = 0,
    augmented: bool = False,
    recipe: str | None = None,
    set: Sequence[str] = (),  # noqa: A002  # the name of the option
    callback: Callback | None = None,
) -> PreviewResult:
    """Draw `count` images of a source, spread over its classes, and save them as a PNG file.

    With `augmented`, draw a row per image: the original followed by its augmentations in five epochs of training with
    `recipe` and `set` (as for `train`); if these define no augmentation, draw the images as training uses them. `out`
    defaults to ``<name>-samples.png`` or ``<name>-augmented.png`` in the current directory; a file that this function
    did not write is never overwritten.
    """
    callback = callback or Callback()
    if not augmented and (recipe or any(not text.startswith(("data.", "input.")) for text in set)):
        raise UsageError("A recipe and settings define how images are augmented: add --augment to see that.")
    request = TrainRequest.create(sources, recipe or "auto", None, set)
    requested = request.merge_layers()  # fail on invalid settings first
    plotting.check_packages()
    targets, threads = find_task(requested.model.task).targets, requested.device.threads or None
    index = build_index(sources, callback.on_progress, threads, options=requested.data, targets=targets)
    default = f"{_io.safe_stem(index.name)}-{'augmented' if augmented else 'samples'}.png"
    path = owned_png.check_output(default if out is None else out, "--out")
    num_images = (DEFAULT_AUGMENTED_COUNT if augmented else DEFAULT_COUNT) if count is None else count
    if num_images < 1:
        raise UsageError(f"count is the number of images, at least 1, not {count}.")
    config = _resolve_training_settings(request, index, callback) if augmented else None
    is_changed = config is not None and pipeline.is_enabled(config.augment)
    if config is not None and is_changed:
        rows = _augment_rows(index, config, num_images, seed)
    elif config is not None:
        images = _decode_images(index, num_images, seed, build_preprocess(config), training=True)
        rows = _divide_rows(images)
    else:
        preprocess, _ = inspection_preprocess(requested.input, index, callback.on_progress, threads)
        images = _decode_images(index, num_images, seed, preprocess, training=False)
        rows = _divide_rows(images)
    owned_png.save_owned_png(path, plot_grid(rows))
    classes = index.sort_classes(p.label for p in index.images)
    return PreviewResult(str(path), classes, len(rows) if is_changed else sum(map(len, rows)))


def _divide_rows(images: list[LabeledPixels]) -> list[list[LabeledPixels]]:
    return [images[offset : offset + COLUMNS] for offset in range(0, len(images), COLUMNS)]


def _resolve_training_settings(request: TrainRequest, index: Index, callback: Callback) -> RunConfig:
    """Return the settings that `train` would use, as far as images depend on them; reports if they change no image."""
    facts = DataFacts.from_index(index, find_task(request.merge_layers().model.task), callback.on_progress)
    config, choice = merge_recipe(request, facts, THIS_MACHINE)
    if not pipeline.is_enabled(config.augment):
        callback.on_message(
            f"The recipe {choice.recipe if choice else request.recipe} has no augmentation: the figure shows the "
            "images as it trains on them, the same in each epoch. To see them changed, choose another with --recipe, "
            "or enable one, as in --set augment.rotation=20."
        )
    return apply_steps(config, (*IMMEDIATE_STEPS, choose_value_range), facts, THIS_MACHINE, callback)


def _sample_indices(index: Index, count: int, seed: int, *, training: bool) -> Iterator[int]:
    """Yield indices of random images, cycling over the classes; of more than `count` classes, a random subset."""
    labels: dict[str, list[int]] = {}
    for i, image in enumerate(index.images):
        if not training or image.split in (None, "train"):
            labels.setdefault(image.label, []).append(i)
    class_names = index.sort_classes(labels)
    if len(class_names) > count:
        sampled = make_generator(seed, "show").permutation(len(class_names))[:count]
        class_names = tuple(class_names[k] for k in sorted(sampled))
    shuffled = {name: make_generator(seed, "show", name).permutation(labels[name]).tolist() for name in class_names}
    for round_number in range(max(map(len, shuffled.values()), default=0)):
        yield from (indices[round_number] for indices in shuffled.values() if round_number < len(indices))


def _decode_images(
    index: Index, count: int, seed: int, preprocess: PreprocessingSpec, *, training: bool
) -> list[LabeledPixels]:
    """Decode `count` images with their labels: preprocessed if `training`, else in their own aspect ratio.

    Undecodable images are skipped.
    """
    decoded: list[LabeledPixels] = []
    for i in _sample_indices(index, count, seed, training=training):
        image = index.images[i]
        width, height = fit_size(image.width, image.height, MAX_SIDE)
        spec = preprocess if training else preprocess.with_size(height, width, 1 if image.grayscale else 3)
        content = index.read(i)
        try:
            decoded.append((spec.convert(content), image.label))
        except ImageError:  # the header is valid, the pixels are not
            continue
        if len(decoded) == count:
            return decoded
    if not decoded:
        raise DataError(f"No image of {index.name} can be shown: none can be decoded, or there is no training split.")
    return decoded


def _augment_rows(index: Index, config: RunConfig, count: int, seed: int) -> list[list[LabeledPixels]]:
    """Return each image followed by its augmentations in five epochs, sampled and applied as in training."""
    images = _decode_images(index, count, seed, build_preprocess(config), training=True)
    pixels = np.stack([p for p, _ in images])
    classes = sorted({label for _, label in images})
    labels = np.array([classes.index(label) for _, label in images], np.int32)
    label_weights = smooth_labels(labels, len(classes), 0.0)
    to_numpy = backend.keras(config.device.backend).ops.convert_to_numpy
    rows = [[image] for image in images]
    for epoch in range(1, COLUMNS + 1):
        params = pipeline.sample_params(config.augment, len(pixels), pixels.shape[1:3], seed, epoch)
        changed = to_numpy(pipeline.apply(config.augment, pixels, params))
        mixed = pipeline.mix_labels(config.augment, label_weights, params)
        for row, version, weights in zip(rows, changed, mixed, strict=True):
            is_mixed = mixup.is_mixing(config.augment)
            row.append((version, _format_label_weights(classes, weights) if is_mixed else f"epoch {epoch}"))
    return rows


def _format_label_weights(classes: Sequence[str], weights: NDArray[np.float32]) -> str:
    return "\n".join(f"{weights[k]:.2f} {classes[k]}" for k in np.argsort(-weights)[:2] if weights[k] >= 0.005)
