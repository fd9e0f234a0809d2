"""`SourceListing`: the contents of a source before any file is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from sightline.data.storage import Store
from sightline.data.targets import LABEL_SETS, join_classes
from sightline.data.types import SourceNote, Split, UnreadableImage
from sightline.errors import plural

LabelOrigin = Literal["table", "folders", "data.labels"]
"""Where labels come from: a table, the names of folders and files, or a table set with ``data.labels``."""

if TYPE_CHECKING:  # circular import at run time
    from sightline.data.masks import MaskClasses


@dataclass(frozen=True, slots=True)
class MaskFile:
    """The mask of an image, not opened yet: a file of the same store, and the meaning of its values.

    `label` names the classes in the mask, if they are known without opening it; the image then keeps its own label, and
    `label` is used where masks are the targets.
    """

    key: str
    path: str
    classes: MaskClasses
    label: str = ""


@dataclass(frozen=True, slots=True)
class SourceItem:
    """A file or array that may be an image, not opened yet; `declared`: the source states that it is one.

    The `label` of an image with a `mask` is still empty; it comes from the mask. `to_label`: the image is not labeled
    yet. `is_number`: the label is an integer from an array.
    """

    store: Store
    key: str
    path: str
    label: str
    split: Split | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    declared: bool = False
    mask: MaskFile | None = None
    to_label: bool = False
    is_number: bool = False


@dataclass(frozen=True, slots=True)
class ClassFolder:
    """A folder that names a class, with or without images in it."""

    path: str
    label: str
    split: Split | None


@dataclass(frozen=True, slots=True)
class ClassNames:
    """The names of classes that are numbers, from the file at `path`; or its `columns`, if none contains the names."""

    path: str
    names: Mapping[str, str]
    columns: str = ""


@dataclass(frozen=True, slots=True)
class SourceListing:
    """The contents of a source: entries to open, files that cannot be used, and skipped files.

    `classes` are its class folders, one for each split of a class. `unlabeled` are images left out for lack of a
    label, such as those of a test folder without class folders. `to_label` are images without a label that people can
    label; they are also in `unusable` or `unlabeled`. `other_rows` are table rows that give one of `items` another
    label; they are also in `unusable`. `notes` become findings about the source. `several_labels` is a text on an image
    with several labels, "" if each has one; labels are then in the form of `data.targets.LabelSetTargets`. A label that
    contains the `separator` is split if the task allows several labels. `origins` are where the labels come from, for
    settings that control how they are read. `class_names` are names for the classes, not used for grades.
    """

    items: list[SourceItem]
    unusable: list[UnreadableImage] = field(default_factory=list)
    skipped_files: list[str] = field(default_factory=list)
    classes: list[ClassFolder] = field(default_factory=list)
    unlabeled: list[str] = field(default_factory=list)
    notes: list[SourceNote] = field(default_factory=list)
    several_labels: str = ""
    to_label: list[SourceItem] = field(default_factory=list)
    other_rows: list[SourceItem] = field(default_factory=list)
    separator: str = ""
    origins: frozenset[LabelOrigin] = frozenset()
    class_names: ClassNames | None = None


def replace_labels(listing: SourceListing, find_label: Callable[[str, str], str]) -> SourceListing:
    """Return the listing with each label replaced by what `find_label` returns for the label and path."""

    def relabel(item: SourceItem) -> SourceItem:
        return replace(item, label=find_label(item.label, item.path))

    return replace(
        listing,
        items=[relabel(item) for item in listing.items],
        unusable=[replace(image, label=find_label(image.label, image.path)) for image in listing.unusable],
        classes=[replace(folder, label=find_label(folder.label, folder.path)) for folder in listing.classes],
    )


def assign_split(listing: SourceListing, split: Split | None) -> SourceListing:
    """Return the listing with this split for images that have none."""
    return replace(
        listing,
        items=[replace(item, split=item.split or split) for item in listing.items],
        classes=[replace(folder, split=folder.split or split) for folder in listing.classes],
    )


def leave_out_images(listing: SourceListing, path: str) -> SourceListing:
    """Return the listing of the source at `path` with its images left out for lack of a label."""
    images = [*(item.path for item in listing.items), *(image.path for image in listing.unusable)]
    notes = [SourceNote("unlabeled-folders", path, plural(len(images), "image"))] if images else []
    return SourceListing([], skipped_files=listing.skipped_files, unlabeled=images, notes=notes)


def join_listings(listings: Sequence[SourceListing]) -> SourceListing:
    """Return the contents of several sources as those of one."""
    joined = SourceListing([])
    for each in listings:
        for name in ("items", "unusable", "skipped_files", "classes", "unlabeled", "notes", "to_label", "other_rows"):
            getattr(joined, name).extend(getattr(each, name))
    return replace(
        joined,
        several_labels=next((each.several_labels for each in listings if each.several_labels), ""),
        separator=next((each.separator for each in listings if each.separator), ""),
        origins=frozenset[LabelOrigin]().union(*(each.origins for each in listings)),
    )


def join_tables(listings: Sequence[SourceListing]) -> SourceListing:
    """Return the contents of several tables as those of one; if one has several labels per image, all may."""
    joined = join_listings(listings)
    if not joined.several_labels:
        return joined
    return replace(join_listings(read_as_label_sets(listings)), several_labels=joined.several_labels)


def read_as_label_sets(listings: Sequence[SourceListing]) -> list[SourceListing]:
    """Return the listings for a task that allows several labels, even if no table row shows that there are several.

    A label that contains the separator is split. A row without a label is an image of none of the classes, and an image
    has the labels of all of its rows. Listings that already have several labels per image are unchanged.
    """
    return [listing if listing.several_labels else _add_rows(_split_labels(listing)) for listing in listings]


def _split_labels(listing: SourceListing) -> SourceListing:
    if not listing.separator:
        return listing

    def split(label: str) -> str:
        return join_classes(name.strip() for name in label.split(listing.separator) if name.strip())

    joined = next((item.path for item in listing.items if listing.separator in item.label), "")
    return replace(
        listing,
        items=[replace(item, label=split(item.label)) for item in listing.items],
        unusable=[replace(image, label=split(image.label)) for image in listing.unusable],
        other_rows=[replace(row, label=split(row.label)) for row in listing.other_rows],
        several_labels=f"{joined} has several labels" if joined else "",
    )


def _add_rows(listing: SourceListing) -> SourceListing:
    unlabeled = [item for item in listing.to_label if item.declared]
    rows = [*unlabeled, *listing.other_rows]
    if not rows:
        return listing
    missing = _select_missing(unlabeled, listing)
    evidence = [*missing, *listing.other_rows]  # without unlabeled rows of images that another row labels
    labels: dict[str, list[str]] = {item.path: list(LABEL_SETS.list_classes(item.label)) for item in listing.items}
    for row in listing.other_rows:
        labels[row.path].extend(LABEL_SETS.list_classes(row.label))
    items = [replace(item, label=join_classes(labels[item.path])) for item in listing.items]
    paths, kinds = {row.path for row in rows}, {"empty-labels", "conflicting-rows"}
    return replace(
        listing,
        items=[*items, *missing],
        unusable=[image for image in listing.unusable if image.path not in paths],
        notes=[note for note in listing.notes if note.kind not in kinds or note.path not in paths],
        several_labels=listing.several_labels
        or next((f"{r.path} has {'several labels' if r.label else 'no label'}" for r in evidence), ""),
    )


def include_unlabeled(listings: Sequence[SourceListing]) -> list[SourceListing]:
    """Return the listings with the images to label added to their items, unless there are splits or masks.

    With several labels per image, a table row without a label means that the image has none of the classes.
    """
    if any(item.split or item.mask for listing in listings for item in listing.items):
        return list(listings)
    has_several = any(listing.several_labels for listing in listings)
    included = []
    for listing in listings:
        missing = _select_missing(listing.to_label, listing)
        items = [replace(item, to_label=True) for item in missing if not (has_several and item.declared)]
        paths = {item.path for item in items}
        unusable = [image for image in listing.unusable if image.path not in paths]
        included.append(replace(listing, items=[*listing.items, *items], unusable=unusable))
    return included


def _select_missing(items: Sequence[SourceItem], listing: SourceListing) -> list[SourceItem]:
    """Return the distinct items whose files have no label in `listing`."""
    labeled = {item.path for item in listing.items}
    return list({item.path: item for item in items if item.path not in labeled}.values())
