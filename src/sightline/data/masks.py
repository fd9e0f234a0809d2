"""Masks: the class of each pixel of an image, as a value that a table of classes names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline import process
from sightline.data.sources.file_labels import normalize_label
from sightline.data.sources.table import read_table
from sightline.data.targets import SEPARATOR, join_classes
from sightline.data.types import Index
from sightline.errors import DataError, ImageError, plural
from sightline.preprocessing import PreprocessingSpec
from sightline.preprocessing.masks import decode_mask

CLASSES_FILE = "classes.csv"
VOID = 255
"""What an encoded mask has at pixels without a class."""
VOID_VALUE = 255
"""The value of pixels without a class where the table of classes does not name it."""
VOID_NAMES = frozenset({"void", "ignore"})
_COLUMNS = ("value", "name")
_MAX_SHOWN = 5


@dataclass(frozen=True, slots=True)
class MaskClasses:
    """What the values of masks mean: `names` gives the class of each value, `void` the values of no class."""

    names: Mapping[int, str]
    void: frozenset[int] = frozenset({VOID_VALUE})

    def read_label(self, mask: NDArray[np.uint8]) -> str:
        """Return the classes in a mask uint8 [H, W] as the label of its image; "" if all pixels are void.

        Raises `ImageError` for values that have no meaning.
        """
        present = [int(value) for value in np.flatnonzero(np.bincount(mask.ravel(), minlength=256))]
        unknown = [str(value) for value in present if value not in self.names and value not in self.void]
        if unknown:
            more = ", ..." if len(unknown) > _MAX_SHOWN else ""
            raise ImageError(
                f"has the {'value' if len(unknown) == 1 else 'values'} {', '.join(unknown[:_MAX_SHOWN])}{more}, which "
                f"{CLASSES_FILE} does not name"
            )
        return join_classes(self.names[value] for value in present if value not in self.void)

    def make_table(self, classes: Sequence[str]) -> NDArray[np.uint8]:
        """Return the position in `classes` for each value of a mask, uint8 [256]; `VOID` for those without a class."""
        table = np.full(256, VOID, np.uint8)
        for value, name in self.names.items():
            table[value] = classes.index(name) if name in classes else VOID
        return table


def read_mask_classes(content: bytes, name: str) -> MaskClasses:
    """Read a table with the columns ``value`` and ``name``, in which a class called void or ignore is none.

    Raises `DataError` for a table without these columns, for a value that is not an integer from 0 to 255, and for a
    value or a class that occurs twice.
    """
    table = read_table(content, name, frozenset(_COLUMNS), lambda _: False)
    columns = {column.strip().casefold(): column for column in table.columns}
    if not set(_COLUMNS) <= set(columns):
        raise DataError(
            f"{name} has the columns {', '.join(table.columns)}: expected value and name, with a row such as 0,sky for "
            "each value of the masks."
        )
    names: dict[int, str] = {}
    void: set[int] = set()
    for row in table.rows:
        place = f"{name}, {table.describe_row(row.line)}"
        text, label = row.get_text(columns["value"]), normalize_label(row.get_text(columns["name"]))
        if not text.isdecimal() or int(text) > VOID_VALUE:
            raise DataError(f"{place}: the value is {text!r}, expected an integer from 0 to 255.")
        if not label or SEPARATOR in label:
            raise DataError(f"{place}: the name is {label!r}, expected that of a class, without {SEPARATOR!r}.")
        value = int(text)
        if value in names or value in void or label in names.values():
            raise DataError(f"{place}: the value {value} or the class {label!r} occurs a second time: remove one row.")
        if label.casefold() in VOID_NAMES:
            void.add(value)
        else:
            names[value] = label
    if not names:
        raise DataError(f"{name} names no class: write a row such as 0,sky for each value of the masks.")
    return MaskClasses(names, frozenset(void | ({VOID_VALUE} - names.keys())))


def load_masks(
    index: Index,
    positions: Sequence[int],
    preprocess: PreprocessingSpec,
    classes: Sequence[str],
    threads: int | None = None,
) -> NDArray[np.uint8]:
    """Return the masks of the images at `positions`, resized as their images are: uint8 [N, height, width].

    A pixel is the position of its class in `classes`, or `VOID`. Raises `DataError` for an index without masks, and if
    a file has changed since it was indexed.
    """
    if index.read_mask is None or index.mask_classes is None:
        raise DataError(
            f"{index.name} has images without masks, which say the class of each pixel: put the masks beside the "
            "images, as in images/1.jpg and masks/1.png, and name their values in classes.csv."
        )
    read, table = index.read_mask, index.mask_classes.make_table(classes)

    def load(position: int) -> NDArray[np.uint8]:
        return preprocess.apply_to_mask(table[decode_mask(read(position))], VOID)

    masks = np.empty((len(positions), preprocess.height, preprocess.width), np.uint8)
    with ThreadPoolExecutor(threads or process.count_cores()) as pool:
        for row, mask in zip(masks, pool.map(load, positions), strict=True):
            row[:] = mask
    return masks


def inspect_mask(content: bytes, size: tuple[int, int], classes: MaskClasses) -> str:
    """Return the label of an image of `size` (width, height) from its mask: the classes in it.

    Raises `ImageError` with what is wrong with the mask.
    """
    mask = decode_mask(content)
    if mask.shape[::-1] != size:
        mask_size, image_size = ("x".join(map(str, sides)) for sides in (mask.shape[::-1], size))
        raise ImageError(f"is {mask_size} pixels, and its image {image_size}")
    return classes.read_label(mask)


def describe_masks(path: str, count: int) -> str:
    """Return how it is known that images have several labels: the first of `count` that have a mask is `path`."""
    return f"{path} and {plural(count - 1, 'other')} have masks, and their labels are the classes in them"
