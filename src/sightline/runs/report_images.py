"""The small images in a run's report: errors and their heat maps, leaks and label issues.

    report/images.jsonl         one line per image: its kind, the path of what it shows, its file
    report/<hash>.webp, .png    thumbnails, and heat maps in grayscale, named by the start of their SHA-256

They are created while the pixels and the model are available, so that the page is rendered without either.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sightline import _io, jsonio
from sightline.data.checks.leakage import Leak
from sightline.data.dataset import DecodedDataset
from sightline.data.types import Subset
from sightline.errors import ModelError
from sightline.evaluation.error_analysis import ErrorExample
from sightline.evaluation.report import EvaluationReport
from sightline.evaluation.results import TaskReport
from sightline.evaluation.segmentation import SegmentationReport
from sightline.explain.heatmaps import compute_heat_maps
from sightline.inference.masks import overlay_mask
from sightline.inference.predictor import Predictor
from sightline.runs.directory import RunDirectory

FOLDER, INDEX = "report", "images.jsonl"
MAX_SIDE = 192  # maximum side of a thumbnail or a heat map, in pixels
MAX_BYTES = 1 << 18  # limit per file in bytes, more than its raw pixels take
MAX_IMAGES = 200  # limit on lines of the index, twice as many as a run has
MAX_LEAKS = 20  # groups of leaked images with thumbnails, one of each split
MAX_LABEL_ISSUES = 20
_FILE = re.compile(r"[0-9a-f]{16}\.(webp|png)")

Kind = Literal["error", "heat_map", "leak", "label_issue", "true_mask", "predicted_mask"]


@dataclass(frozen=True, slots=True)
class ReportImage:
    """A line of ``images.jsonl``: `file` contains a small version of the image at `path`.

    A heat map shows the evidence for the class `predicted`, which is empty for the other kinds.
    """

    kind: Kind
    path: str
    file: str
    predicted: str = ""


Images = Mapping[ReportImage, bytes]
"""The content of each file."""


def make_thumbnail(kind: Kind, path: str, pixels: NDArray[np.uint8]) -> tuple[ReportImage, bytes]:
    """Return uint8 [H, W, C] as a WebP file, at most `MAX_SIDE` on a side."""
    content = _encode(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels, "webp", quality=80)
    return ReportImage(kind, path, name_file(content, "webp")), content


def make_heat_map(path: str, predicted: str, heat: NDArray[np.float32]) -> tuple[ReportImage, bytes]:
    """Return a heat map float32 [H, W] in [0, 1] as a grayscale PNG file, at most `MAX_SIDE` on a side."""
    content = _encode(np.rint(255 * heat).astype(np.uint8), "png")
    return ReportImage("heat_map", path, name_file(content, "png"), predicted), content


def _encode(pixels: NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    image.save(file, kind, **options)
    return file.getvalue()


def name_file(content: bytes, suffix: str) -> str:
    """Return the name of a file with this content."""
    return f"{hashlib.sha256(content).hexdigest()[:16]}.{suffix}"


def write_images(run: RunDirectory, images: Images, is_replaced: Callable[[ReportImage], bool]) -> None:
    """Save images in place of the run's images for which `is_replaced` is true; the others are kept."""
    try:
        others = [image for image in _read_index(run) if not is_replaced(image)]
    except ModelError:  # damaged
        others = []
    for image, content in images.items():
        run.write_file(f"{FOLDER}/{image.file}", content)
    listed = [*images, *others]
    run.write_file(f"{FOLDER}/{INDEX}", jsonio.dump_lines([asdict(image) for image in listed]))
    names = {INDEX, *(image.file for image in listed)}
    for old in (run.path / FOLDER).iterdir():
        if old.name not in names:
            _io.remove(old)


def read_images(run: RunDirectory) -> Images:
    """Return the images of the run with the content of their files, empty where a file is missing or damaged.

    Raises `ModelError` if the index cannot be read, or has more than `MAX_IMAGES` lines.
    """
    index = _read_index(run)
    contents = {name: _read_content(run, name) for name in {image.file for image in index}}
    return {image: contents[image.file] for image in index}


def _read_index(run: RunDirectory) -> tuple[ReportImage, ...]:
    path = run.path / FOLDER / INDEX
    images = jsonio.read_records(path, lambda _: ReportImage, MAX_IMAGES) if path.exists() else ()
    for image in images:
        if not _FILE.fullmatch(image.file):
            raise ModelError(f"{path} cannot be read: {image.file[:40]!r} is not the name of a thumbnail.")
    return images


def _read_content(run: RunDirectory, name: str) -> bytes:
    """Return the content of a file whose name is its hash; empty for a link or any other file."""
    path = run.path / FOLDER / name
    if path.is_symlink() or path.parent.is_symlink():
        return b""
    try:
        content = _io.read_regular(path, MAX_BYTES)
    except OSError:
        return b""
    return content if name_file(content, path.suffix[1:]) == name else b""


def write_examples(run: RunDirectory, report: TaskReport, samples: Subset, predictor: Predictor | None = None) -> None:
    """Save the small images of `samples` that a report shows: errors, or the worst masks, with heat maps.

    The `predictor` computes the heat maps; without it, the run's heat maps of the same predictions are kept.
    """
    if isinstance(report, SegmentationReport):
        write_mask_images(run, report, samples, predictor)
        return
    one_class = isinstance(report, EvaluationReport)  # a heat map shows the evidence for one predicted class
    write_error_images(run, report.errors.most_confident_errors, samples, predictor if one_class else None)


def write_mask_images(
    run: RunDirectory, report: SegmentationReport, samples: Subset, predictor: Predictor | None
) -> None:
    """Save thumbnails of the worst images, alone and under their true and their predicted mask, and heat maps.

    Each heat map shows the evidence for the second of the two classes that are confused most in the image. Without the
    `predictor`, the run's heat maps of the same predictions are kept.
    """
    images: dict[ReportImage, bytes] = {}
    count = len(report.evaluation.classes)
    for example in report.errors.worst_images:
        pixels = samples.take(slice(example.index, example.index + 1))[0]
        true = overlay_mask(pixels, samples.labels[example.index], count)
        layers: list[tuple[Kind, NDArray[np.uint8]]] = [
            ("error", pixels), ("true_mask", true), ("predicted_mask", overlay_mask(pixels, example.mask, count)),
        ]  # fmt: skip
        images |= dict(make_thumbnail(kind, example.path, layer) for kind, layer in layers)
        if predictor is not None and example.predicted:
            class_index = predictor.classes.index(example.predicted)
            heat = compute_heat_maps(
                predictor, pixels[None], np.array([class_index]), "gradcam", regions=example.mask[None] == class_index
            )[0]
            images |= dict([make_heat_map(example.path, example.predicted, heat)])
    predictions = {(e.path, e.predicted) for e in report.errors.worst_images} if predictor is None else set()
    kinds = ("error", "true_mask", "predicted_mask")
    write_images(run, images, partial(_is_replaced, kinds=kinds, kept_predictions=predictions))


def _is_replaced(image: ReportImage, kinds: Collection[str], kept_predictions: Collection[tuple[str, str]]) -> bool:
    """Return whether an image is one of the `kinds`, or a heat map that belongs to none of the predictions to keep."""
    return image.kind in kinds or (image.kind == "heat_map" and (image.path, image.predicted) not in kept_predictions)


def write_error_images(
    run: RunDirectory, errors: Sequence[ErrorExample], samples: Subset, predictor: Predictor | None
) -> None:
    """Save thumbnails of errors among `samples`, and heat maps of the evidence for the predicted class (Grad-CAM).

    Without the `predictor`, which computes the heat maps, the run's heat maps of the same predictions are kept.
    """
    pixels = samples.take(np.array([error.index for error in errors], np.int64))
    images = dict(make_thumbnail("error", error.path, image) for error, image in zip(errors, pixels, strict=True))
    predictions = {(error.path, error.predicted) for error in errors} if predictor is None else set()
    if predictor is not None:
        classes = np.array([predictor.classes.index(error.predicted) for error in errors], np.int64)
        heats = compute_heat_maps(predictor, pixels, classes, "gradcam")
        images |= dict(make_heat_map(e.path, e.predicted, heat) for e, heat in zip(errors, heats, strict=True))
    write_images(run, images, partial(_is_replaced, kinds=("error",), kept_predictions=predictions))


def write_leak_images(run: RunDirectory, leaks: Sequence[Leak], data: DecodedDataset) -> None:
    """Save thumbnails of the first leaks, with one image from each split."""
    rows = [row for leak in leaks[:MAX_LEAKS] for row in {row.split: row for row in reversed(leak.images)}.values()]
    positions = {image.path: i for i, image in enumerate(data.images)}
    images = dict(make_thumbnail("leak", row.path, data.pixels[data.rows[positions[row.path]]]) for row in rows)
    write_images(run, images, lambda image: image.kind == "leak")


def write_label_issue_images(run: RunDirectory, pixels: Mapping[str, NDArray[np.uint8]]) -> None:
    """Save thumbnails of images whose labels may be wrong, whose pixels uint8 [H, W, C] are given by path."""
    images = dict(make_thumbnail("label_issue", path, image) for path, image in pixels.items())
    write_images(run, images, lambda image: image.kind == "label_issue")
