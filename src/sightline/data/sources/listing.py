"""`SourceListing`: the contents of a source before any file is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sightline.data.storage import Store
from sightline.data.types import SourceNote, Split, UnreadableImage

if TYPE_CHECKING:  # it reads tables, which are listed here
    from sightline.data.masks import MaskClasses


@dataclass(frozen=True, slots=True)
class MaskFile:
    """The mask of an image, not opened yet: a file of the same store, and what its values mean.

    `label` are the classes in it, if they are known without opening it; the image then keeps its own label, and has
    this one where masks are learned.
    """

    key: str
    path: str
    classes: MaskClasses
    label: str = ""


@dataclass(frozen=True, slots=True)
class SourceItem:
    """A file or array that may be an image, not opened yet; `declared`: the source states that it is one.

    An image with a `mask` has no `label` yet: the mask has it.
    """

    store: Store
    key: str
    path: str
    label: str
    split: Split | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    declared: bool = False
    mask: MaskFile | None = None


@dataclass(frozen=True, slots=True)
class ClassFolder:
    """A folder that names a class, with or without images in it."""

    path: str
    label: str
    split: Split | None


@dataclass(frozen=True, slots=True)
class SourceListing:
    """The contents of a source: entries to open, files that cannot be used, and files passed over.

    `classes` are its class folders, one for each split that has it. `unlabeled` are images left out for lack of a
    label, such as those of a test folder without class folders. `to_label` are images without a label that people can
    give one, which `unusable` or `unlabeled` names too. `notes` become findings about the source.
    `several_labels` tells which image has several labels, which are then written as `data.targets.LabelSetTargets`
    reads them; "" if each has one.
    """

    items: list[SourceItem]
    unusable: list[UnreadableImage] = field(default_factory=list)
    skipped_files: list[str] = field(default_factory=list)
    classes: list[ClassFolder] = field(default_factory=list)
    unlabeled: list[str] = field(default_factory=list)
    notes: list[SourceNote] = field(default_factory=list)
    several_labels: str = ""
    to_label: list[SourceItem] = field(default_factory=list)

    @property
    def num_skipped(self) -> int:
        """The number of files passed over."""
        return len(self.skipped_files)


def include_empty_sets(listings: Sequence[SourceListing]) -> list[SourceListing]:
    """Return the listings with the rows of tables that have no label as images of none of the classes.

    They are for a task that takes several labels; a listing whose images have several has these already.
    """
    included = []
    for listing in listings:
        rows = [item for item in listing.to_label if item.declared and not listing.several_labels]
        items, paths = _select_missing(rows, listing), {item.path for item in rows}
        included.append(
            replace(
                listing,
                items=[*listing.items, *items],
                unusable=[image for image in listing.unusable if image.path not in paths],
                notes=[note for note in listing.notes if note.kind != "empty-labels" or note.path not in paths],
                several_labels=f"{items[0].path} has no label" if items else listing.several_labels,
            )
        )
    return included


def include_unlabeled(listings: Sequence[SourceListing]) -> list[SourceListing]:
    """Return the listings with the images to label among their items, where an image has one class and no split."""
    if any(item.split or item.mask for listing in listings for item in listing.items):
        return list(listings)
    if any(listing.several_labels for listing in listings):
        return list(listings)
    included = []
    for listing in listings:
        items = _select_missing(listing.to_label, listing)
        paths = {item.path for item in items}
        unusable = [image for image in listing.unusable if image.path not in paths]
        included.append(replace(listing, items=[*listing.items, *items], unusable=unusable))
    return included


def _select_missing(items: Sequence[SourceItem], listing: SourceListing) -> list[SourceItem]:
    """Return the items, each once, whose files have no label in `listing`."""
    labeled = {item.path for item in listing.items}
    return list({item.path: item for item in items if item.path not in labeled}.values())
