"""`show`: a labeled grid of a data set's images, original or augmented as in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sightline import backend, files
from sightline.config import RunConfig, recipes, resolve
from sightline.data.index import Sources
from sightline.data.index import index as make_index
from sightline.errors import DataError, OutputError, PictureError, UsageError
from sightline.models import registry
from sightline.preprocess import Preprocess
from sightline.randomness import generator
from sightline.records import Index
from sightline.report import canvas
from sightline.report.grid import grid
from sightline.training import augment, mixing
from sightline.training.optimizer import label_shares
from sightline.watch import Watcher
from sightline.workflow import choose, environment, signed

ACROSS = 5  # images per row; augmented versions of each image
PICTURES, AUGMENTED = 10, 4  # default numbers of images
SIDE = 256  # maximum longer side in pixels

Found = tuple[NDArray[np.uint8], str]


@dataclass(frozen=True, slots=True)
class Shown:
    """The path of the figure, all classes of the source, and the number of images shown."""

    figure: str
    classes: tuple[str, ...]
    count: int


def show(
    sources: Sources,
    *,
    out: Path | str | None = None,
    count: int | None = None,
    seed: int = 0,
    augmented: bool = False,
    recipe: str | None = None,
    set: Sequence[str] = (),  # noqa: A002  # the option's own name
    watcher: Watcher | None = None,
) -> Shown:
    """Draw `count` images of a source, spread over its classes, and save them as a PNG file.

    With `augmented`: a row per image, the original followed by its augmentations in five epochs of training with
    `recipe` and `set` (as for `train`). `out` defaults to ``<name>-samples.png`` or ``<name>-augmented.png`` in the
    current directory; a file that this function did not write is never overwritten.
    """
    watcher = watcher or Watcher()
    if not augmented and (recipe or any(not text.startswith(("data.", "picture.")) for text in set)):
        raise UsageError("A recipe and settings define how images are augmented: add --augment to see that.")
    given = resolve(recipes.load(recipe or "auto"), assignments=set)  # fail on invalid settings first
    if given.model.name != "auto":
        registry.find(given.model.name)
    canvas.check_packages()
    index = make_index(sources, watcher.progress, given.device.threads or None, options=given.data)
    path = (
        Path(out)
        if out is not None
        else Path(f"{files.stem(index.name)}-{'augmented' if augmented else 'samples'}.png")
    )
    _check(path)
    wanted = count or (AUGMENTED if augmented else PICTURES)
    if augmented:
        settled = choose.with_range(_settled(index, given, set, recipe or "auto"), index, watcher)
        rows = _versions(index, settled, wanted, seed)
    else:
        how, _ = choose.for_a_look(given.picture, index, watcher.progress, given.device.threads or None)
        pictures = _pictures(index, wanted, seed, how, training=False)
        rows = [pictures[at : at + ACROSS] for at in range(0, len(pictures), ACROSS)]
    signed.save(path, grid(rows))
    classes = tuple(sorted({p.label for p in index.pictures}))
    return Shown(str(path), classes, len(rows) if augmented else sum(map(len, rows)))


def _settled(index: Index, given: RunConfig, assignments: Sequence[str], recipe: str) -> RunConfig:
    """Return the settings that `train` would use."""
    if recipe == "auto":
        environment.start(given.device)
        chosen = choose.recipe(index)
        given, recipe = choose.laid_on(chosen, [], assignments), chosen.recipe
    if not augment.changes(given.augment):
        raise UsageError(
            f"The recipe {recipe} has no augmentation. Choose another with --recipe, or enable one, as in "
            "--set augment.rotation=20."
        )
    return choose.settle(given, index)


def _order(index: Index, count: int, seed: int, *, training: bool) -> Iterator[int]:
    """Yield indices of random images, cycling over the classes; of more than `count` classes, a random subset."""
    labels: dict[str, list[int]] = {}
    for i, picture in enumerate(index.pictures):
        if not training or picture.part in (None, "train"):
            labels.setdefault(picture.label, []).append(i)
    names = sorted(labels)
    if len(names) > count:
        chosen = generator(seed, "show").permutation(len(names))[:count]
        names = [names[k] for k in sorted(chosen)]
    shuffled = {name: generator(seed, "show", name).permutation(labels[name]).tolist() for name in names}
    for turn in range(max(map(len, shuffled.values()), default=0)):
        yield from (places[turn] for places in shuffled.values() if turn < len(places))


def _pictures(index: Index, count: int, seed: int, preprocess: Preprocess, *, training: bool) -> list[Found]:
    """Decode `count` images with their labels: preprocessed if `training`, else in their own aspect ratio.

    Undecodable images are skipped.
    """
    found: list[Found] = []
    for i in _order(index, count, seed, training=training):
        picture = index.pictures[i]
        scale = min(1.0, SIDE / max(picture.width, picture.height))
        height, width = (max(1, round(scale * side)) for side in (picture.height, picture.width))
        how = preprocess if training else preprocess.sized(height, width, 1 if picture.grey else 3)
        content = index.read(i)
        try:
            found.append((how.fit(content) if isinstance(content, np.ndarray) else how.decode(content), picture.label))
        except PictureError:  # the header is valid, the pixels are not
            continue
        if len(found) == count:
            return found
    if not found:
        raise DataError(f"No image of {index.name} can be shown: none can be decoded, or there is no training split.")
    return found


def _versions(index: Index, config: RunConfig, count: int, seed: int) -> list[list[Found]]:
    """Return each image followed by its augmentations in five epochs, sampled and applied as in training."""
    pictures = _pictures(index, count, seed, choose.preprocess(config), training=True)
    pixels = np.stack([p for p, _ in pictures])
    classes = sorted({label for _, label in pictures})
    labels = np.array([classes.index(label) for _, label in pictures], np.int32)
    shares = label_shares(labels, len(classes), 0.0)
    to_numpy = backend.keras(config.device.backend).ops.convert_to_numpy
    rows = [[picture] for picture in pictures]
    for epoch in range(1, ACROSS + 1):
        drawn = augment.draw(config.augment, len(pixels), pixels.shape[1:3], seed, epoch)
        changed = to_numpy(augment.apply(config.augment, pixels, drawn))
        mixed = augment.mix_labels(shares, drawn)
        for row, version, share in zip(rows, changed, mixed, strict=True):
            row.append((version, _shares(classes, share) if mixing.mixes(config.augment) else f"epoch {epoch}"))
    return rows


def _shares(classes: Sequence[str], shares: NDArray[np.float32]) -> str:
    return "\n".join(f"{shares[k]:.2f} {classes[k]}" for k in np.argsort(-shares)[:2] if shares[k] >= 0.005)


def _check(path: Path) -> None:
    """Raise before any work if the figure cannot be written to `path`."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"The figure is a PNG file: give --out a name that ends with .png, not {path}.")
    if not path.parent.is_dir():
        raise OutputError(f"There is no folder {path.parent} for the figure {path.name}: create it first.")
    if path.exists() and not signed.is_ours(path):
        raise OutputError(f"{path} exists and was not written by Sightline: move it, or choose another with --out.")
