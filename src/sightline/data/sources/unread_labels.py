"""Notes on files that may contain labels but are not read: spreadsheets, boxes, tables beside class folders."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import PurePosixPath

from sightline.data.image_tables import is_image_table
from sightline.data.sources.class_name_files import is_wordnet_id
from sightline.data.sources.columns import find_by_name
from sightline.data.sources.filenames import is_hidden, is_image_name
from sightline.data.sources.image_lists import ImageList, ImageLists
from sightline.data.sources.listing import SourceListing
from sightline.data.sources.table import LIST_SUFFIXES, Table
from sightline.data.types import SourceNote, Split
from sightline.errors import DataError, list_some

TABLE_ADVICE = "Use a table with --set data.labels=FILE --column label=NAME."
BOXES_ADVICE = (
    "The boxes of YOLO and Pascal VOC and the files of LabelMe, CVAT and MATLAB are not read: write a table with the "
    "columns path and label, a row for each image, or sort the images into class folders. Label Studio exports such a "
    "table as CSV."
)
_SPREADSHEETS = {".xlsx", ".xls", ".xlsm", ".ods", ".numbers"}
_BOXES = {".txt": "YOLO", ".xml": "Pascal VOC", ".json": "LabelMe"}
_TOOLS = {".mat": "MATLAB", "annotations.xml": "CVAT", ".json": "JSON"}
_ADVICE = {
    "spreadsheet": "Save the spreadsheet as CSV.",
    "Parquet": "Write the Parquet or Arrow file as CSV.",
    "a table": TABLE_ADVICE,
    **dict.fromkeys([*_BOXES.values(), *_TOOLS.values()], BOXES_ADVICE),
}
"""Advice on a file, by the first words on what it is."""
MIN_AGREEMENT = 0.9  # fraction of labels in a table that agree with the class folders; below, they mean something else
_SUBJECT = re.compile("patient|site|hospital", re.IGNORECASE)


def is_spreadsheet(path: str) -> bool:
    """Return whether a file has the extension of a spreadsheet."""
    return PurePosixPath(path).suffix.lower() in _SPREADSHEETS


def find_unread_labels(paths: Iterable[str]) -> dict[str, str]:
    """Return the files that may contain labels but are not read, each with its apparent kind.

    Boxes are in a file that is named as an image is: ``labels/1.txt`` or ``Annotations/1.xml`` for ``images/1.jpg``.
    """
    visible = [path for path in paths if not is_hidden(path)]
    image_names = {PurePosixPath(path).stem for path in visible if is_image_name(path)}
    result = {}
    for path in visible:
        name = PurePosixPath(path)
        if is_spreadsheet(path):
            result[path] = "spreadsheet"
        elif is_image_table(path):
            result[path] = "Parquet or Arrow"
        elif name.suffix.lower() in _BOXES and name.stem in image_names:
            result[path] = _BOXES[name.suffix.lower()]
        elif kind := _TOOLS.get(name.name.lower()) or _TOOLS.get(name.suffix.lower()):
            result[path] = kind
    return result


def advise_on_unread_labels(reason: str) -> str:
    """Return advice on a label file that is not read for this reason; "" if the reason says what to do."""
    return next((f" {advice}" for start, advice in _ADVICE.items() if reason.startswith(start)), "")


def note_unread_tables(listing: SourceListing, lists: ImageLists, prefix: str) -> None:
    """Add a note on each table that names most images and may contain their labels, if the folders may not be classes.

    This is in doubt if there is at most one folder, if the names of the folders differ only in a number (``images_1``,
    ``images_2``) or look like splits, or if images with one label in the table are in several folders. Folders that
    number the parts of a data set are an error, which then names the table. Text files count only if there is at most
    one class.
    """
    looks_split = any(note.kind == "split-folders" for note in listing.notes)
    stems = {label if is_wordnet_id(label) else re.sub(r"\d+", "", label) for label in lists.labels.values()}
    in_doubt = looks_split or len(stems) < 2
    may_be_incomplete = any(item.split for item in listing.items)  # a table may name the remaining images
    described = {
        key: _describe(lists, key, in_doubt=in_doubt, may_be_incomplete=may_be_incomplete) for key in lists.select_top()
    }
    reasons = {key: reason for key, reason in described.items() if reason}
    numbered = next((i for i, note in enumerate(listing.notes) if note.kind == "numbered-folders"), None)
    if numbered is not None:
        naming = next(((key, each) for key, each in lists.read_all(list(reasons)) if each.images), None)
        if naming is not None:
            key, each = naming
            reason = f"{prefix}{key}, whose columns are {list_some(each.table.columns)}, names its images"
            listing.notes[numbered] = replace(listing.notes[numbered], reason=reason)
            del reasons[key]
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
