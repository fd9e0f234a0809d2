"""Masks: the class of each pixel of an image, as a value that a class table maps to a name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import process
from sightline.data.sources.file_labels import normalize_label
from sightline.data.sources.table import read_table
from sightline.data.targets import SEPARATOR, Targets, join_classes
from sightline.data.types import Index
from sightline.errors import DataError, ImageError, list_some, plural
from sightline.preprocessing import PreprocessingSpec
from sightline.preprocessing.masks import TRANSPARENT, decode_color_mask, decode_mask

CLASSES_FILE = "classes.csv"
CLASSES_FILES = (CLASSES_FILE, "class_dict.csv", "label_colors.txt")
"""The names of class tables: Sightline's own, and two that distribute CamVid."""
VOID = 255
"""The value of pixels without a class in an encoded mask."""
VOID_VALUE = 255
"""The default value of pixels without a class, unless the class table names a class for it."""
VOID_NAMES = frozenset({"void", "ignore", "unlabeled"})
_RGB = ("r", "g", "b")
_COLUMNS = frozenset({"value", "name", "color", *_RGB})
_COLOR = re.compile(r"#?([0-9a-fA-F]{6})")
_COLOR_AT_START = re.compile(rb"(?m)^[ \t]*(#[0-9a-fA-F]{1,8})(?=[ \t]*[,;\t|])")
_COLOR_LINE = re.compile(r"(\d+)\s+(\d+)\s+(\d+)\s+(\S.*)")
_MAX_SHOWN = 5


@dataclass(frozen=True, slots=True)
class MaskClasses:
    """The meaning of mask values: `names` maps each value to its class, `void` contains the values without a class.

    A value is a palette index or gray level from 0 to 255, or a color as 0xRRGGBB if `are_colors` is true. `file` is
    the class table that defines them.
    """

    names: Mapping[int, str]
    void: frozenset[int] = frozenset({VOID_VALUE})
    are_colors: bool = False
    file: str = field(default=CLASSES_FILE, compare=False)

    def read_label(self, mask: NDArray[np.integer[Any]]) -> str:
        """Return the classes among the values [H, W] of a mask as the label of its image; "" if all pixels are void.

        Raises `ImageError` for values that the table does not name.
        """
        present = _list_values(mask)
        unknown = [self._describe(value) for value in present if value not in self.names and value not in self.void]
        if unknown:
            what = "color" if self.are_colors else "value"
            raise ImageError(
                f"has the {what if len(unknown) == 1 else what + 's'} {list_some(unknown, _MAX_SHOWN)}, which "
                f"{self.file} does not name"
            )
        return join_classes(self.names[value] for value in present if value not in self.void)

    def decode(self, content: bytes) -> NDArray[np.integer[Any]]:
        """Return the values of an encoded mask, [H, W]; raises `ImageError` for a file that is not a valid mask."""
        return decode_color_mask(content) if self.are_colors else decode_mask(content)

    def encode(self, mask: NDArray[np.integer[Any]], classes: Sequence[str]) -> NDArray[np.uint8]:
        """Return the position in `classes` of each value of a mask, uint8 [H, W]; `VOID` for values without a class."""
        values = np.array(sorted(self.names), np.int64)
        targets = np.array(
            [classes.index(name) if (name := self.names[value]) in classes else VOID for value in values.tolist()],
            np.uint8,
        )
        at = np.minimum(np.searchsorted(values, mask), len(values) - 1)
        return np.where(values[at] == mask, targets[at], np.uint8(VOID))

    def list_void(self) -> list[str]:
        """Return the values or colors that the table marks as no class, with a name such as void."""
        return [self._describe(value) for value in sorted(self.void - {TRANSPARENT if self.are_colors else VOID_VALUE})]

    def _describe(self, value: int) -> str:
        return f"#{value:06x}" if self.are_colors else str(value)


def _list_values(mask: NDArray[np.integer[Any]]) -> list[int]:
    if mask.dtype == np.uint8:  # many times faster than sorting all pixels
        return [int(value) for value in np.flatnonzero(np.bincount(mask.ravel(), minlength=256))]
    return [int(value) for value in np.unique(mask)]


def read_mask_classes(content: bytes, name: str) -> MaskClasses:
    """Read a table with a class ``name`` for each ``value`` or color; the names void and ignore mean no class.

    Values are integers from 0 to 255. Colors are values such as ``#804080``, or the columns ``r``, ``g`` and ``b``;
    ``label_colors.txt`` has lines such as ``128 64 128 Road``. Pixels that are fully transparent have no class.
    Raises `DataError` for a table without these columns, for invalid cells in them, and for a repeated value or class.
    """
    if name.casefold().endswith(".txt"):
        content = _convert_color_lines(content)
    table = read_table(_COLOR_AT_START.sub(rb'"\1"', content), name, _COLUMNS, lambda _: False)
    columns = {column.strip().casefold(): column for column in table.columns}
    value_column = columns.get("value", columns.get("color"))
    by_channel = value_column is None and set(_RGB) <= set(columns)
    if "name" not in columns or not (value_column or by_channel):
        raise DataError(
            f"{name} has the columns {', '.join(table.columns)}: expected value and name, with a row such as 0,sky for "
            "each value of the masks, or such as #8080c0,sky for each color."
        )
    names: dict[int, str] = {}
    void: set[int] = set()
    kinds: set[bool] = set()
    for row in table.rows:
        place = f"{name}, {table.describe_row(row.line)}"
        text = row.get_text(value_column) if value_column else ",".join(row.get_text(columns[c]) for c in _RGB)
        label = normalize_label(row.get_text(columns["name"]))
        value, is_color = _parse_value(text, place, is_color=by_channel or "value" not in columns)
        kinds.add(is_color)
        if len(kinds) > 1:
            raise DataError(f"{place}: {text!r} is a color or a value, unlike the rows above: use one of the two.")
        if not label or SEPARATOR in label:
            raise DataError(f"{place}: the name is {label!r}, expected that of a class, without {SEPARATOR!r}.")
        if value in names or value in void or label in names.values():
            raise DataError(f"{place}: the value {text} or the class {label!r} occurs a second time: remove one row.")
        if label.casefold() in VOID_NAMES:
            void.add(value)
        else:
            names[value] = label
    if not names:
        raise DataError(f"{name} names no class: write a row such as 0,sky for each value of the masks.")
    if len(names) > VOID:
        raise DataError(f"{name} names {len(names)} classes: masks have at most {VOID}.")
    file, are_colors = PurePosixPath(name).name, kinds == {True}
    void |= {TRANSPARENT} if are_colors else {VOID_VALUE} - names.keys()
    return MaskClasses(names, frozenset(void), are_colors, file)


def _parse_value(text: str, place: str, *, is_color: bool) -> tuple[int, bool]:
    """Return the value of a cell, and whether it is a color, either #rrggbb or three numbers."""
    text = text.strip()
    if (match := _COLOR.fullmatch(text)) and (is_color or text.startswith("#")):
        return int(match[1], 16), True
    parts = text.split(",") if is_color else [text]
    if len(parts) != (3 if is_color else 1) or not all(p.strip().isdecimal() and int(p) <= VOID_VALUE for p in parts):
        expected = "a color such as #804080" if is_color else "an integer from 0 to 255, or a color such as #804080"
        raise DataError(f"{place}: the value is {text!r}, expected {expected}.")
    return int.from_bytes(bytes(map(int, parts))), is_color


def _convert_color_lines(content: bytes) -> bytes:
    """Convert the lines of CamVid's ``label_colors.txt``, such as ``64 128 64 Animal``, to a table."""
    lines = content.decode("utf-8", "replace").splitlines()
    rows = [match.groups() for line in lines if (match := _COLOR_LINE.fullmatch(line.strip()))]
    return "\n".join(["r\tg\tb\tname", *("\t".join(row) for row in rows)]).encode()


def check_masks(index: Index) -> tuple[Callable[[int], bytes], MaskClasses]:
    """Return the function that reads masks, and the classes of mask values; raises `DataError` without masks."""
    if index.read_mask is None or index.mask_classes is None:
        raise DataError(
            f"{index.name} has images without masks, which give the class of each pixel: put the masks beside the "
            "images, as in images/1.jpg and masks/1.png, and name their values in classes.csv."
        )
    return index.read_mask, index.mask_classes


def load_masks(
    index: Index,
    positions: Sequence[int],
    preprocess: PreprocessingSpec,
    classes: Sequence[str],
    threads: int | None = None,
) -> NDArray[np.uint8]:
    """Return the masks of the images at `positions`, resized like their images: uint8 [N, height, width].

    Each pixel is the position of its class in `classes`, or `VOID`. Raises `DataError` for an index without masks, and
    if a file has changed since it was indexed.
    """
    read, table = check_masks(index)

    def load(position: int) -> NDArray[np.uint8]:
        return preprocess.apply_to_mask(table.encode(table.decode(read(position)), classes), VOID)

    masks = np.empty((len(positions), preprocess.height, preprocess.width), np.uint8)
    with ThreadPoolExecutor(threads or process.count_cores()) as pool:
        for row, mask in zip(masks, pool.map(load, positions), strict=True):
            row[:] = mask
    return masks


def choose_labels(index: Index, targets: Targets) -> Index:
    """Return an index labeled with the classes in the masks, if masks are the targets and images have other labels.

    The synthetic coffee beans have both: a roast as label, and a mask of the bean pixels.
    """
    if not targets.are_masks or not any(image.mask_label for image in index.images):
        return index
    images = tuple(replace(image, label=image.mask_label or image.label, mask_label="") for image in index.images)
    return replace(index, images=images, several_labels=describe_masks(images[0].path, len(images)))


def inspect_mask(content: bytes, size: tuple[int, int], classes: MaskClasses) -> str:
    """Return the classes in a mask as the label of its image, which is of `size` (width, height).

    Raises `ImageError` for an invalid mask.
    """
    mask = classes.decode(content)
    if mask.shape[::-1] != size:
        mask_size, image_size = ("x".join(map(str, sides)) for sides in (mask.shape[::-1], size))
        turned = ": if the image has an EXIF orientation, save the mask upright too" if mask.shape == size else ""
        raise ImageError(f"is {mask_size} pixels, but its image is {image_size}{turned}")
    return classes.read_label(mask)


def describe_masks(path: str, count: int) -> str:
    """Return the evidence that images have several labels: `count` images have masks, the first of them is `path`."""
    return f"{path} and {plural(count - 1, 'other')} have masks, and their labels are the classes in them"
