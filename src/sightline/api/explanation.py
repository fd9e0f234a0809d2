"""`explain`: heat maps of the evidence for a class, with figures and a faithfulness check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import _io
from sightline.api import owned_png
from sightline.api.loaded_model import LoadedModel
from sightline.callbacks import Progress, no_progress
from sightline.errors import UsageError, suggest
from sightline.explain import localization
from sightline.explain.explanation import Explanation, HeatRegion
from sightline.explain.faithfulness import check_faithfulness
from sightline.explain.heatmaps import Method, compute_heat_maps, resolve_method
from sightline.explain.localization import PixelRegion
from sightline.inference.decisions import predict_labels
from sightline.inference.inputs import InputItem
from sightline.inference.predictor import Predictor
from sightline.inference.results import Thresholds
from sightline.inference.runner import predict_images
from sightline.inference.stream import decode_item, find_size
from sightline.models.entry import Activation
from sightline.preprocessing import PreprocessingSpec, fit_size
from sightline.report.heatmap_plot import plot_explanation

MAX_FIGURE_SIDE = 2000  # maximum side of an image in a figure, in pixels; larger images are scaled down


@dataclass(frozen=True, slots=True)
class _DecodedImage:
    """One image: its content (encoded or in memory), its displayed size, and the model's input pixels."""

    content: Any
    width: int
    height: int
    pixels: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Request:
    """What to explain: the class `label`, by default the class that the `thresholds` predict."""

    method: Method
    label: str | None
    thresholds: Thresholds | None
    activation: Activation
    seed: int


def explain(
    model: LoadedModel,
    predictor: Predictor,
    items: Sequence[InputItem],
    *,
    method: str | None,
    label: str | None,
    out: Path | None,
    seed: int,
    progress: Progress,
) -> Iterator[Explanation]:
    """Yield one `Explanation` per image, in order; for an unreadable image, one with its `error`.

    `predictor` is that of `model`, or its Keras model. `method` is gradcam, gradcam++, occlusion or rise (None: gradcam
    if it can be computed, else occlusion); `label` is the class to explain (None: the predicted class of each image;
    with several labels the most probable one, for a mask the class of the most pixels). With `out`, a folder, a PNG
    file per image is written there. Raises `UsageError` for an unknown method or class, `OutputError` if the folder is
    not writable.
    """
    request = _make_request(model, predictor, method, label, seed)
    if out is not None:
        out = _io.create_folder(out, "the figures")
    return _explain_batches(predictor, items, request, _FigureWriter(out), progress)


def _explain_batches(
    predictor: Predictor, items: Sequence[InputItem], request: _Request, writer: _FigureWriter, progress: Progress
) -> Iterator[Explanation]:
    total, started, finished = len(items), 0, 0
    has_steps = not request.method.startswith("gradcam")  # an image takes seconds, so its steps are counted instead
    last_progress = ("", 0)
    decode = partial(_decode, predictor.preprocess)
    with closing(predict_images(predictor, items, decode, lambda image: image.pixels)) as batches:
        for batch in batches:
            predicted = [image for image in batch if image.error is None]
            paths = [image.item.path for image in predicted]
            decoded = [image.decoded for image in predicted if image.decoded is not None]
            probabilities = [image.probabilities for image in predicted if image.probabilities is not None]

            def advance(
                task: str, done: int, steps: int, *, before: int = started, count: int = len(predicted)
            ) -> None:
                nonlocal last_progress
                steps_per_image = steps // count
                last_progress = (task, total * steps_per_image)
                if before * steps_per_image + done < last_progress[1]:
                    progress(task, before * steps_per_image + done, last_progress[1])

            explanations: Iterator[Explanation] = iter(())
            if predicted:
                explanations = _explain_batch(
                    predictor, paths, decoded, np.stack(probabilities), request,
                    advance if has_steps else no_progress,
                )  # fmt: skip
            for image in batch:
                if image.decoded is None or image.error is not None:
                    yield Explanation(image.item.path, request.method, error=image.error)
                else:
                    yield writer.draw(next(explanations), image.decoded, predictor.preprocess)
                finished += 1
                if not has_steps:
                    progress("explaining", finished, total)
            started += len(batch)
    if last_progress[1]:
        progress(last_progress[0], last_progress[1], last_progress[1])


def _decode(preprocess: PreprocessingSpec, item: InputItem) -> _DecodedImage:
    content = item.read()
    return _DecodedImage(
        content, *find_size(preprocess, content), decode_item(preprocess, InputItem(item.path, lambda: content))
    )


def explain_pixels(
    model: LoadedModel,
    predictor: Predictor,
    pixels: NDArray[np.uint8],
    width: int,
    height: int,
    *,
    method: str | None = None,
    label: str | None,
) -> Explanation:
    """Return the explanation of one decoded image, without a path and a figure.

    `pixels` [H, W, C] are the model's input; `width` and `height` are the size of the image as displayed. The other
    arguments and the errors are those of `explain`.
    """
    request = _make_request(model, predictor, method, label)
    probabilities = predictor.probabilities(pixels[None])
    decoded = [_DecodedImage(None, width, height, pixels)]
    return next(_explain_batch(predictor, [""], decoded, probabilities, request, no_progress))


def _make_request(
    model: LoadedModel, predictor: Predictor, method: str | None, label: str | None, seed: int = 0
) -> _Request:
    """Return what to explain; raises `UsageError` for a method that is not supported, and for an unknown class."""
    resolved = resolve_method(method, predictor, are_masks=model.task.targets.are_masks)
    if label is not None and label not in predictor.classes:
        raise UsageError(f"The model has no class {label!r}.{suggest(label, predictor.classes)}")
    return _Request(resolved, label, model.thresholds, model.task.activation, seed)


def _explain_batch(
    predictor: Predictor,
    paths: Sequence[str],
    decoded: Sequence[_DecodedImage],
    probabilities: NDArray[np.float32],
    request: _Request,
    progress: Progress,
) -> Iterator[Explanation]:
    """Yield the explanations of N images with `probabilities` [N, K], or [N, H, W, K] of masks, without a figure."""
    pixels = np.stack([image.pixels for image in decoded])
    chosen = None if request.label is None else predictor.classes.index(request.label)
    regions: Sequence[PixelRegion | None] = [None] * len(pixels)
    masks = None
    if probabilities.ndim == 4:
        of_classes = [
            PixelRegion.find(row, _find_visible(predictor.preprocess, one), chosen)
            for row, one in zip(probabilities, decoded, strict=True)
        ]
        class_indices = np.array([region.class_index for region in of_classes])
        regions, masks = of_classes, np.stack([region.pixels for region in of_classes])
    elif chosen is None:
        class_indices = predict_labels(probabilities, predictor.classes, request.thresholds)
    else:
        class_indices = np.full(len(pixels), chosen)
    maps = compute_heat_maps(
        predictor, pixels, class_indices, request.method, activation=request.activation, regions=masks,
        seed=request.seed, progress=progress,
    )  # fmt: skip
    for path, one, row, class_index, heat, region in zip(
        paths, decoded, probabilities, class_indices.tolist(), maps, regions, strict=True
    ):
        width, height = fit_size(one.width, one.height, MAX_FIGURE_SIDE)
        hottest = localization.find_region(localization.map_to_original(heat, predictor.preprocess, width, height))
        probability = float(row[class_index]) if region is None else region.probability
        explained = None if region is None else region.pixels
        yield Explanation(
            path,
            request.method,
            predictor.classes[class_index],
            probability,
            heat,
            hottest and _scale_region(hottest, one.width / width, one.height / height),
            None
            if hottest is None
            else check_faithfulness(predictor, one.pixels, heat, class_index, probability, request.seed, explained),
            pixel_fraction=None if region is None else region.fraction,
            pixel_region=explained,
        )


def _find_visible(preprocess: PreprocessingSpec, image: _DecodedImage) -> NDArray[np.bool_]:
    """Return which pixels [H, W] of the model's input show the image rather than padding."""
    _, (left, top, right, bottom) = preprocess.compute_placement(image.width, image.height)
    visible = np.zeros(image.pixels.shape[:2], bool)
    visible[int(top) : int(bottom), int(left) : int(right)] = True
    return visible


def _scale_region(region: HeatRegion, across: float, down: float) -> HeatRegion:
    left, right = int(region.left * across), round(region.right * across)
    top, bottom = int(region.top * down), round(region.bottom * down)
    return HeatRegion(left, top, max(right, left + 1), max(bottom, top + 1), region.heat_fraction)


class _FigureWriter:
    """Draws explanations to a folder, each with a unique name; does nothing without a folder."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._taken: set[str] = set()

    def draw(self, explanation: Explanation, image: _DecodedImage, preprocess: PreprocessingSpec) -> Explanation:
        """Draw the figure and return `explanation` with its path; raises `OutputError` if another file exists there."""
        if self._folder is None or explanation.heat is None:
            return explanation
        path = self._folder / self._name(explanation)
        width, height = fit_size(image.width, image.height, MAX_FIGURE_SIDE)
        original = preprocess.with_size(height, width)
        heat_overlay = localization.map_to_original(explanation.heat, preprocess, width, height)
        visible_box, _ = preprocess.compute_placement(width, height)
        hottest = explanation.region and _scale_region(explanation.region, width / image.width, height / image.height)
        outline = None
        if explanation.pixel_region is not None:
            mask = explanation.pixel_region.astype(np.float32)
            outline = localization.map_to_original(mask, preprocess, width, height) > 0.5
        figure = plot_explanation(
            original.convert(image.content),
            heat_overlay,
            hottest,
            _title(explanation),
            explanation.list_sentences(),
            visible_box,
            outline,
        )
        owned_png.save_owned_png(path, figure)
        return replace(explanation, figure=str(path))

    def _name(self, explanation: Explanation) -> str:
        base = _io.safe_stem(Path(explanation.path).stem).strip("-") or "image"
        stem = name = f"{base}-{_io.safe_stem(str(explanation.label))}-{explanation.method}"
        number = 1
        while name in self._taken:
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(name)
        return f"{name}.png"


def _title(explanation: Explanation) -> str:
    return f"{explanation.label}  {explanation.probability:.3f}  ({explanation.method})"
