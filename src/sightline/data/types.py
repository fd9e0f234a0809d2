"""Types shared by sources, the index and the split: images with path, hash, label and split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, get_args

from sightline.errors import plural

if TYPE_CHECKING:  # annotations only, so that the command line's help does not import NumPy
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from sightline.data.masks import MaskClasses
    from sightline.data.targets import Targets


Split = Literal["train", "validation", "test"]


SPLITS: tuple[Split, ...] = get_args(Split)

OUT_OF_FOLD = "out-of-fold"
"""What a run with folds is evaluated on, instead of the validation split, whose file names it uses."""

NO_LABEL = "has no label"
"""The reason for leaving out an image that has no class."""


@dataclass(frozen=True, slots=True)
class MaskRecord:
    """The mask of an image: its path, and the sha256 of its encoded bytes."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One readable image of a data source.

    `path` identifies it for people; `sha256` is over the encoded bytes (of arrays: dtype, shape, pixels); `split` is
    the split that the source states, if any; `width` and `height` are as displayed; `high_bit_depth`: more than 8 bits
    per sample. The classes in the `mask` of an image are its label, or its `mask_label` if it has another label. An
    image `to_label` has the label "" because it is still unlabeled, not because it has none of the classes. `is_kept`:
    a person has confirmed the label.
    """

    path: str
    sha256: str
    label: str
    split: Split | None
    width: int
    height: int
    grayscale: bool = False
    extra: Mapping[str, str] = field(default_factory=dict)
    high_bit_depth: bool = False
    stated_range: tuple[float, float] | None = None
    mask: MaskRecord | None = None
    mask_label: str = ""
    is_kept: bool = False
    to_label: bool = False


@dataclass(frozen=True, slots=True)
class UnreadableImage:
    """A file that looks like an image but cannot be used."""

    path: str
    reason: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class InvalidMask(UnreadableImage):
    """An image that can be read, but whose mask cannot be used."""


def describe_unreadable(files: Sequence[UnreadableImage]) -> str:
    """Describe how many files could not be used, with the first one and the first with another reason; "" for none.

    Not all of them are damaged: some lack a mask or a label.

    >>> describe_unreadable([UnreadableImage("1.jpg", "truncated"), UnreadableImage("2.jpg", "has no mask")])
    '2 files could not be used, such as 1.jpg: truncated; 2.jpg: has no mask'
    """
    if not files:
        return ""
    others = (file for file in files if file.reason != files[0].reason)
    examples = "; ".join(f"{file.path}: {file.reason}" for file in (files[0], *islice(others, 1)))
    return f"{plural(len(files), 'file')} could not be used, such as {examples}"


NoteKind = Literal[
    "ambiguous-masks", "class-masks", "class-names", "conflicting-rows", "copied-folders", "empty-labels",
    "guessed-encoding", "invalid-masks", "labels-from-names", "labels-from-table", "mask-folders", "missing-files",
    "missing-masks", "nested-classes", "numbered-folders", "repeated-members", "split-folders", "split-named-class",
    "splits-from-lists", "unexpected-folder", "unlabeled-folders", "unread-class-names", "unread-columns",
    "unread-labels", "unread-splits", "unused-masks",
]  # fmt: skip
"""The kinds of findings on how a source is read; `checks.remarks` words them."""


@dataclass(frozen=True, slots=True)
class SourceNote:
    """A remark on a source, made while listing it: the `kind` of finding that it becomes, the path, and the reason."""

    kind: NoteKind
    path: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Index:
    """The contents of a data source, before any pixel is decoded.

    `read(i)` returns the encoded bytes of image `i`, or its pixels (uint8 HWC) if the source is an array. `other_files`
    are files that are not images (``Thumbs.db``, notes, hidden files). `empty_classes` names the class folders that
    contain neither images nor rejected files. `notes` describe how the source was read and what was left out.
    `several_labels` is a text on an image with several labels; "" if each has one. `read_mask(i)` returns the encoded
    mask of image `i`, with values as in `mask_classes`; None for a source without masks. `class_order` is the order of
    all classes, if stated. `find_file(i)` returns the path of image `i` on this machine; None if it is in an archive, a
    table or memory. `has_numbers`: classes are the integers of arrays. `has_paths`: classes are nodes of a tree.
    """

    name: str
    images: tuple[ImageRecord, ...]
    unreadable: tuple[UnreadableImage, ...]
    read: Callable[[int], bytes | NDArray[np.uint8]] = field(repr=False, compare=False)
    other_files: tuple[str, ...] = ()
    empty_classes: tuple[str, ...] = ()
    notes: tuple[SourceNote, ...] = ()
    several_labels: str = ""
    read_mask: Callable[[int], bytes] | None = field(default=None, repr=False, compare=False)
    mask_classes: MaskClasses | None = None
    class_order: tuple[str, ...] = ()
    find_file: Callable[[int], Path | None] | None = field(default=None, repr=False, compare=False)
    has_numbers: bool = False
    has_paths: bool = False

    @property
    def targets(self) -> Targets:
        """The `Targets` that match how the labels of the source are written."""
        from sightline.data.targets import CLASS_PATHS, CLASS_TARGETS, LABEL_SETS

        return LABEL_SETS if self.several_labels else CLASS_PATHS if self.has_paths else CLASS_TARGETS

    @property
    def image_classes(self) -> list[tuple[str, ...]]:
        """The classes of each image: one, or any number with several labels; none for a parent class of a tree."""
        from sightline.data.targets import list_leaf_classes

        return list_leaf_classes(self.targets, [image.label for image in self.images])

    @property
    def labels_are_masks(self) -> bool:
        """Whether the label of each image is the classes in its mask, rather than a separate label."""
        return self.mask_classes is not None and self.read_mask is not None and bool(self.several_labels)

    def sort_classes(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the distinct class names, sorted by code point; integers from arrays are sorted by value."""
        if not self.has_numbers:
            return tuple(sorted(set(names)))
        width = 20  # digits of the largest integer in an array
        return tuple(sorted(set(names), key=lambda name: (name.zfill(width) if name.isdecimal() else name, name)))

    def select(self, positions: Sequence[int]) -> Index:
        """Return the index of only the images at `positions`, in that order."""
        read, read_mask, find_file, indices = self.read, self.read_mask, self.find_file, tuple(positions)
        return replace(
            self,
            images=tuple(self.images[i] for i in indices),
            read=lambda i: read(indices[i]),
            read_mask=None if read_mask is None else lambda i: read_mask(indices[i]),
            find_file=None if find_file is None else lambda i: find_file(indices[i]),
        )


@dataclass(frozen=True, slots=True)
class Subset:
    """Labeled pixels of one split: image ``i`` is ``pixels[rows[i]]``, its target ``labels[i]``.

    `pixels` is uint8 [M, H, W, C] (memory-mapped), or float32 features computed by frozen layers; `rows` is int64.
    `labels` [N, ...] are encoded by the task (`data.targets`), such as class indices, int32 [N], for one class each.
    `sizes` int64 [N, 2] are the width and height of each image as displayed, needed for images with masks.
    """

    pixels: NDArray[Any]
    rows: NDArray[np.int64]
    labels: NDArray[Any]
    paths: tuple[str, ...]
    sizes: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: NDArray[np.int64] | slice) -> NDArray[Any]:
        """Return a copy of the pixels at `positions`: [n, H, W, C]."""
        return self.pixels[self.rows[positions]]

    def head(self, count: int) -> Subset:
        """Return the first `count` images."""
        sizes = None if self.sizes is None else self.sizes[:count]
        return Subset(self.pixels, self.rows[:count], self.labels[:count], self.paths[:count], sizes)

    def select(self, positions: NDArray[np.int64]) -> Subset:
        """Return the images at `positions`, in that order."""
        paths = tuple(self.paths[i] for i in positions)
        sizes = None if self.sizes is None else self.sizes[positions]
        return Subset(self.pixels, self.rows[positions], self.labels[positions], paths, sizes)

    def sample_evenly(self, count: int) -> Subset:
        """Return at most `count` images, evenly spaced; all images if there are no more than `count`."""
        import numpy as np

        return self.select(np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64))


def _align_labels(first: NDArray[Any], second: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return both label arrays; if the first is [N, K], convert class indices [N] in the second to the same form."""
    import numpy as np

    if first.ndim == 2 and second.ndim == 1:
        return first, np.eye(first.shape[1], dtype=first.dtype)[second]
    return first, second


def join_subsets(first: Subset, second: Subset) -> Subset:
    """Return the images of both subsets, without `sizes`; pixels are copied unless both share one array."""
    import numpy as np

    is_shared = first.pixels is second.pixels
    return Subset(
        first.pixels if is_shared else np.concatenate([first.take(slice(None)), second.take(slice(None))]),
        np.concatenate([first.rows, second.rows]) if is_shared else np.arange(len(first) + len(second)),
        np.concatenate(_align_labels(first.labels, second.labels)),
        first.paths + second.paths,
    )


@dataclass(frozen=True, slots=True)
class MissingImages:
    """Images of a split, out of `total`, that no longer match the run: `changed` were modified, the others are gone."""

    images: tuple[str, ...]
    changed: int
    total: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the number of these images as JSON values."""
        return {
            "count": len(self.images), "changed": self.changed, "total": self.total, "images": list(self.images),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class TrainingOverlap:
    """Paths of evaluation images from other sources that the model was trained or validated on.

    `identical` are the same files. Both kinds are evaluated if `included` is true, otherwise left out. `identical` is
    None if the model does not record its training images, `near_duplicates` is None if they were not searched.
    """

    identical: tuple[str, ...] | None
    near_duplicates: tuple[str, ...] | None
    included: bool

    @property
    def count(self) -> int:
        """The number of these images, as far as known."""
        return len(self.identical or ()) + len(self.near_duplicates or ())

    def to_dict(self) -> dict[str, Any]:
        """Return the number of images of each kind (None if unknown) and their paths as JSON values."""
        return {
            "included": self.included,
            "identical": None if self.identical is None else len(self.identical),
            "near_duplicates": None if self.near_duplicates is None else len(self.near_duplicates),
            "images": [*(self.identical or ()), *(self.near_duplicates or ())],
        }


@dataclass(frozen=True, slots=True)
class LabeledSubset:
    """Images to evaluate on: `subset`, their `images` (in the same order), and the unreadable ones in `unreadable`.

    `split` is the run's own split that they form, or None for images from other sources, whose overlap with the
    training images is `overlap`. `missing` are images of the split that are gone; `added` counts images that were added
    to the run's sources later and are in no split. `leaked` maps the hash of each image that is also in an earlier
    split to "identical" or "near_duplicates". `groups` maps the path of each image to its group, if the run was split
    by groups. `folds` maps the path of each image to its fold, if the predictions are out of fold.
    """

    subset: Subset
    images: tuple[ImageRecord, ...]
    unreadable: tuple[UnreadableImage, ...]
    split: Split | None = None
    missing: MissingImages | None = None
    added: int = 0
    overlap: TrainingOverlap | None = None
    leaked: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    folds: Mapping[str, int] = field(default_factory=dict)
