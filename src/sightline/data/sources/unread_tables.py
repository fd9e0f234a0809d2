"""Notes on tables beside class folders that may contain the labels of the images, but are not read."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace

from sightline.data.sources.columns import find_by_name
from sightline.data.sources.folder_layout import are_numbered
from sightline.data.sources.image_lists import ImageList, ImageLists
from sightline.data.sources.listing import SourceListing
from sightline.data.sources.table import LIST_SUFFIXES, Table
from sightline.data.types import SourceNote, Split
from sightline.errors import DataError, list_some

MIN_AGREEMENT = 0.9  # fraction of labels in a table that agree with the class folders; below, they mean something else
_SUBJECT = re.compile("patient|site|hospital", re.IGNORECASE)


def note_unread_tables(listing: SourceListing, lists: ImageLists, prefix: str, *, is_stated: bool) -> None:
    """Add a note on each table that names most images and may contain their labels, if the folders may not be classes.

    This is in doubt if there is at most one folder, if the names of the folders differ only in a number (``images_1``,
    ``images_2``) or look like splits, or if images with one label in the table are in several folders. Folders that
    number the parts of a data set are an error, unless the user states the class folders (`is_stated`). Text files
    count only if there is at most one class.
    """
    looks_split = any(note.kind == "split-folders" for note in listing.notes)
    in_doubt = looks_split or len({re.sub(r"\d+", "", label) for label in lists.labels.values()}) < 2
    may_be_incomplete = any(item.split for item in listing.items)  # a table may name the remaining images
    described = {
        key: _describe(lists, key, in_doubt=in_doubt, may_be_incomplete=may_be_incomplete) for key in lists.select_top()
    }
    reasons = {key: reason for key, reason in described.items() if reason}
    if not is_stated and are_numbered({folder.label for folder in listing.classes}):
        naming = next(((key, each) for key, each in lists.read_all(list(reasons)) if each.images), None)
        if naming is not None:
            key, each = naming
            reason = f"{prefix}{key}, whose columns are {list_some(each.table.columns)}, names its images"
            notes = [SourceNote("numbered-folders", folder.path) for folder in listing.classes]
            listing.notes.extend([replace(notes[0], reason=reason), *notes[1:]])
    listing.notes.extend(SourceNote("unread-labels", prefix + key, reason) for key, reason in reasons.items())


def _describe(lists: ImageLists, key: str, *, in_doubt: bool, may_be_incomplete: bool) -> str:
    """Describe a file that may contain labels; "" for other files."""
    if key.lower().endswith(LIST_SUFFIXES):
        return _describe_text_list(lists, key)
    if not key.lower().endswith((".csv", ".tsv")):
        return ""
    try:
        each = lists.read(key)
    except DataError as error:
        return str(error).removeprefix(f"{key} ").rstrip(".") if in_doubt else ""
    if each.names_most(lists.labels):
        return _describe_labels(each, lists.labels, in_doubt=in_doubt)
    if each.images:
        return ""
    reason = _describe_subjects(each.table, set(lists.labels.values()))
    return reason or (_describe_foreign(each.table) if in_doubt and not may_be_incomplete else "")


def _describe_text_list(lists: ImageLists, key: str) -> str:
    """Describe a text file that contains more about most images than their names; "" for other files."""
    if len(set(lists.labels.values())) > 1:
        return ""
    with suppress(DataError):
        each = lists.read(key)
        if each.column and each.names_most(lists.labels):
            return "a table whose cells are separated by spaces"
    return ""


def _describe_labels(each: ImageList, labels: Mapping[str, str], *, in_doubt: bool) -> str:
    """Describe a table of most images whose labels may differ from the folders; "" if they agree."""
    columns = each.find_label_columns()
    if not columns:
        return f"a table whose columns are {list_some(each.table.columns)}" if in_doubt else ""
    folders: dict[str, Counter[str]] = defaultdict(Counter)
    for i, image in each.images.items():
        folders[each.rows[i][columns[0]]][labels[image]] += 1
    agreements = sum(max(counts.values()) for counts in folders.values())
    is_one_folder = len(set(labels.values())) < 2
    differs = len(folders) > 1 and (is_one_folder or agreements < MIN_AGREEMENT * len(each.images))
    return f"a table of other labels, such as {list_some(sorted(folders))}" if differs else ""


def _describe_subjects(table: Table, folders: Collection[str]) -> str:
    """Describe a table that names `folders` which may not be classes; "" for other tables.

    This is in doubt if the column is named after patients or sites, or if one folder has several labels.
    """
    names = find_by_name(table, "label", ())
    for column in table.columns:
        labels = {(row.get_text(column), row.get_text(names[0]) if names else "") for row in table.rows}
        may_be_subjects = len(labels) > len(folders) or _SUBJECT.search(column)
        if may_be_subjects and column not in names and folders == {folder for folder, _ in labels}:
            return f"a table with the class folders in its column {column!r}"
    return ""


def _describe_foreign(table: Table) -> str:
    """Describe a table of labels that names no image; "" for other tables."""
    names, paths = (find_by_name(table, role, ()) for role in ("label", "path"))
    if not (names and paths and table.rows):
        return ""
    return f"a table whose column {paths[0]!r} names no image, such as {table.rows[0].get_text(paths[0])!r}"


def describe_unknown_labels(each: ImageList, images: Collection[str], classes: Collection[str], split: Split) -> str:
    """Describe a list of most `images` of a split if its labels are not in `classes`, else ""."""
    names = each.find_label_columns()
    column = names[0] if names else each.column + 1
    has_labels = bool(names or not each.table.has_header) and (each.column % 2 or len(each.table.columns) > 1)
    labels = (each.rows[i][column] for i in each.images if column < len(each.rows[i]))
    unknown = next((label for label in labels if label not in classes), "")
    if not has_labels or not unknown or not each.names_most(images):
        return ""
    return f"a list of {split} images whose labels, such as {unknown!r}, are not the names of class folders"
