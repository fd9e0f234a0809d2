"""Read labels and splits from a table: a manifest, or a table of labels for a folder of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sightline import _io
from sightline.config import DataConfig
from sightline.data.containers import is_archive
from sightline.data.image_tables import is_image_table
from sightline.data.masks import MaskClasses, describe_masks, read_mask_classes
from sightline.data.sources.class_parents import label_by_parents
from sightline.data.sources.columns import (
    KNOWN_COLUMNS,
    UNASSIGNED,
    Columns,
    choose_columns,
    find_other_classes,
    join_split_flags,
)
from sightline.data.sources.encoding import GUESSED_ENCODING, detect_encoding
from sightline.data.sources.file_finder import FileFinder
from sightline.data.sources.file_labels import normalize_label
from sightline.data.sources.label_sets import (
    LabelSets,
    find_label_sets,
    find_separator,
    parse_list,
    read_rows_as_labels,
)
from sightline.data.sources.listing import MaskFile, SourceItem, SourceListing
from sightline.data.sources.mask_folders import find_classes_file
from sightline.data.sources.split_names import find_folder_split, parse_split
from sightline.data.sources.table import (
    LIST_SUFFIXES,
    TABLE_SUFFIXES,
    Row,
    Table,
    build_table,
    normalize_name,
    read_table,
)
from sightline.data.sources.unread_labels import is_spreadsheet
from sightline.data.storage import FolderStore, read_untrusted_file
from sightline.data.targets import LABEL_SETS, join_classes
from sightline.data.types import NoteKind, SourceNote, Split, UnreadableImage
from sightline.errors import DataError, ImageError, list_some, plural
from sightline.escaping import quote_path

DEFAULTS = DataConfig()
FOLDERS_OF_TABLES = {"annotations", "annotation", "labels", "label", "metadata", "meta"}
MAX_CONFLICT_FRACTION = 0.01  # conflicting files; above this, each row is one of several labels of a file


def is_table(path: Path) -> bool:
    """Return whether a file has the extension of a table, or of a text file that may be a table."""
    return path.name.lower().endswith((*TABLE_SUFFIXES, *LIST_SUFFIXES))


@dataclass(frozen=True, slots=True)
class LabelTable:
    """A table of image labels, whose cells `finder` resolves to images; `key` is the table's own key in their store.

    `is_guessed`: the encoding is not certain.
    """

    table: Table
    columns: Columns
    finder: FileFinder
    is_guessed: bool = False
    key: str = ""

    def find_images(self) -> Iterator[str]:
        """Yield the key of the image in each row whose file exists."""
        keys = map(self.finder.find, self.table.list_texts(self.columns.path))
        return (key for key in keys if key is not None)


def read_manifest(path: Path, options: DataConfig = DEFAULTS) -> SourceListing:
    """Read a manifest: a table with a column of image files, one of labels, and optionally one of splits.

    Paths are relative to ``data.root``, or else to the manifest's folder; if no file exists there and it is a folder
    for tables, such as ``annotations/`` of COCO, to its parent folder. Rows without a label or with a missing file are
    left out and reported. If images may have several labels, in the table or for the task, a row without a label is an
    image of none of the classes; see `listing.read_as_label_sets`. Raises `DataError` for a table that cannot be
    parsed, or if none of its files exist.
    """
    content, split = read_content(path, options), parse_split(path.stem)
    labels = parse_table(content, str(path), replace(_open_root(path.parent, str(path), options), split=split), options)
    folder = path.parent.resolve()
    if not options.root and folder.name.casefold() in FOLDERS_OF_TABLES and next(labels.find_images(), None) is None:
        labels = replace(labels, finder=FileFinder(FolderStore(folder.parent, options.limits), split))
    return list_from_table(labels, options)


def read_rows(
    rows: Iterable[Mapping[str, Any]],
    name: str,
    options: DataConfig = DEFAULTS,
    finder: FileFinder | None = None,
    prefix: str = "",
) -> SourceListing:
    """Read a manifest in memory, such as the rows of a DataFrame, which messages call `name`; see `read_manifest`.

    Paths are those in the store of `finder`; without it, relative to ``data.root``, else to the current directory.
    """
    if finder is None:
        finder = _open_root(Path(), name, options)
        if not options.root:  # the name of the current directory says nothing about the images
            finder.store.name = "dataframe"
    return list_from_table(_choose_columns(build_table(rows, name), finder, options), options, prefix)


def _open_root(default: Path, name: str, options: DataConfig) -> FileFinder:
    root = _io.expand_home(options.root) if options.root else default
    if not root.is_dir():
        raise DataError(
            f"data.root {options.root!r} is not a folder: name the folder that the paths in {name} are relative to."
        )
    return FileFinder(FolderStore(root, options.limits))


def read_content(path: Path, options: DataConfig = DEFAULTS) -> bytes:
    """Return the content of the table at `path`; raises `DataError` if it cannot be read, such as a spreadsheet."""
    if is_spreadsheet(path.name):
        raise DataError(f"{path} is a spreadsheet, which cannot be read: save it as CSV (UTF-8).")
    if is_image_table(path.name):
        raise DataError(
            f"{path} is a Parquet or Arrow file, from which images are read, but not labels: write it as CSV."
        )
    try:
        return read_untrusted_file(path, options.limits)
    except ImageError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def parse_table(
    content: bytes, name: str, finder: FileFinder, options: DataConfig = DEFAULTS, key: str = ""
) -> LabelTable:
    """Parse a table and choose its columns; raises `DataError` if it is invalid or lacks a file or label column."""
    requested = {normalize_name(name) for name in (options.columns.path, options.columns.label, options.columns.split)}
    known_columns = KNOWN_COLUMNS | {a for a in requested if not a.isdigit()} - {""}
    max_rows = options.limits.table_rows
    table = read_table(content, name, known_columns, finder.is_file, options.encoding, max_rows, may_be_spaced=True)
    is_guessed = not options.encoding and detect_encoding(content) == GUESSED_ENCODING
    return replace(_choose_columns(table, finder, options), is_guessed=is_guessed, key=key)


def _choose_columns(table: Table, finder: FileFinder, options: DataConfig) -> LabelTable:
    table = join_split_flags(table)
    return LabelTable(table, choose_columns(table, options.columns, finder.is_file), finder)


def list_from_table(
    labels: LabelTable, options: DataConfig = DEFAULTS, prefix: str = "", *, store_is_source: bool = False
) -> SourceListing:
    """List the images that a table labels.

    `store_is_source`: the store of the images is the source, so the listing notes which table was used, and a folder
    such as ``train`` states the split if the table does not.
    """
    table, columns, finder = labels.table, labels.columns, labels.finder
    by_folder = store_is_source and not columns.split
    label_sets = None if columns.mask else find_label_sets(table, columns)
    mask_classes = _read_mask_classes(table, finder) if columns.mask else None
    listing = _RowReader(table, columns, finder, prefix, by_folder, label_sets, mask_classes).to_listing()
    if not listing.items:
        raise DataError(_no_items_message(table, columns, listing, finder))
    if options.class_tree == "column":
        listing = label_by_parents(listing, table)
    if columns.label and not options.columns.label and (others := find_other_classes(table, columns)):
        reason = f"each row has one of {list_some(others)}, but column {columns.label} is read"
        listing.notes.append(SourceNote("unread-columns", table.name, reason))
    if labels.is_guessed:
        listing.notes.append(SourceNote("guessed-encoding", table.name))
    if store_is_source:
        reason = f"columns {list_some(columns.one_hot or columns.labels)}"
        reason = f"column {columns.label}" if columns.label else "" if columns.mask else reason
        listing.notes.append(SourceNote("labels-from-table", table.name, reason))
    return replace(listing, origins=frozenset({"table"}))


def _read_mask_classes(table: Table, finder: FileFinder) -> MaskClasses:
    content = find_classes_file(finder.store)
    if content is None:
        raise DataError(
            f"{table.name} has masks, but {finder.store.name} has no classes.csv, which names their values: write one "
            "with the columns value and name, and a row such as 0,sky for each value."
        )
    return read_mask_classes(*content)


@dataclass(frozen=True, slots=True)
class _RowReader:
    """Converts the rows of a table to a listing; with `by_folder`, folders state the splits.

    In a table with a mask column, a row has a mask file instead of a label.
    """

    table: Table
    columns: Columns
    finder: FileFinder
    prefix: str
    by_folder: bool
    label_sets: LabelSets | None
    mask_classes: MaskClasses | None

    def to_listing(self) -> SourceListing:
        """Return an entry for each file, with the labels of all its rows if several are possible."""
        if self.label_sets:
            listing = SourceListing([], several_labels=self.label_sets.evidence)
        else:
            listing = SourceListing([], separator="" if self.columns.mask else find_separator(self.table, self.columns))
        are_integers = bool(self.columns.label) and _are_integers_written_as_floats(
            self.table.list_texts(self.columns.label)
        )
        first_rows: dict[str, tuple[int, str]] = {}
        positions: dict[str, int] = {}
        for row in self.table.rows:
            label = self._read_label(row)
            label = _drop_fraction(label) if are_integers else label
            key = self.finder.find(row.get_text(self.columns.path))
            if (problem := self._find_problem(row, label, key, first_rows)) is not None:
                self._leave_out(listing, row, label, key, *problem)
            elif key is not None and key not in first_rows:  # equal rows count once
                first_rows[key] = row.line, label
                positions[key] = len(listing.items)
                listing.items.append(self._to_item(row, label, key))
            elif key is not None and self.label_sets:
                item = listing.items[positions[key]]
                label = join_classes([*LABEL_SETS.list_classes(item.label), *LABEL_SETS.list_classes(label)])
                listing.items[positions[key]] = replace(item, label=label)
        if self.columns.mask and listing.items:
            return replace(listing, several_labels=describe_masks(listing.items[0].path, len(listing.items)))
        conflicts = [note for note in listing.notes if note.kind == "conflicting-rows"]
        if len(conflicts) > MAX_CONFLICT_FRACTION * len(first_rows):
            return replace(self, label_sets=read_rows_as_labels(self.table, self.columns, conflicts[0])).to_listing()
        return listing

    def _leave_out(
        self, listing: SourceListing, row: Row, label: str, key: str | None, kind: NoteKind, reason: str
    ) -> None:
        """Note why a row is left out, and keep it in the listing if another task can use it."""
        place = self.table.describe_row(row.line)
        path = self._display_path(row, key) or place
        listing.notes.append(SourceNote(kind, path, place))
        stated_label = label if kind == "missing-files" and not self.columns.mask else ""
        listing.unusable.append(UnreadableImage(path, reason, stated_label))
        if key is not None and kind == "conflicting-rows":
            listing.other_rows.append(self._to_item(row, label, key))
        elif key is not None and kind == "empty-labels" and not self.columns.mask:
            listing.to_label.append(self._to_item(row, "", key))

    def _read_label(self, row: Row) -> str:
        if self.columns.mask:
            return row.get_text(self.columns.mask)  # like a label, one per image
        if self.label_sets:
            return self.label_sets.read_label(row)
        return _to_single_label(self.columns.read_label(row))

    def _find_problem(
        self, row: Row, label: str, key: str | None, first_rows: dict[str, tuple[int, str]]
    ) -> tuple[NoteKind, str] | None:
        """Return the kind and the reason if a row must be left out."""
        place = f"{self.table.describe_row(row.line)} of {self.table.name}"
        if self.columns.mask and self.finder.find(label) is None:
            return "missing-masks", f"its mask is missing ({place})" if label else f"{place} has no mask"
        if not label and not self.label_sets:
            return "empty-labels", f"{place} has no label"
        if not row.get_text(self.columns.path):
            return "empty-labels", f"{place} has no file"
        if key is None:
            return "missing-files", f"the file is missing ({place})"
        line, other = first_rows.get(key, (0, label))
        if other == label or self.label_sets:
            return None
        return "conflicting-rows", f"{place} has a different label than {self.table.describe_row(line)}"

    def _display_path(self, row: Row, key: str | None) -> str:
        text = row.get_text(self.columns.path)
        return self.prefix + (key or text) if text else ""

    def _to_item(self, row: Row, label: str, key: str) -> SourceItem:
        columns = self.columns
        roles = {columns.path, columns.label, columns.split, columns.mask, *columns.one_hot, *columns.labels}
        split = find_folder_split(key) if self.by_folder else _read_row_split(row, columns, self.table)
        extra = {c: row.get_text(c) for c in row.cells if c not in roles}
        mask = None
        if self.mask_classes is not None:
            mask_key = self.finder.find(label) or label
            label, mask = "", MaskFile(mask_key, self.prefix + mask_key, self.mask_classes)
        return SourceItem(
            self.finder.store, key, self._display_path(row, key), label, split, extra, declared=True, mask=mask
        )


def _to_single_label(label: str | tuple[str, ...]) -> str:
    """Return a class name, possibly from a list with one name; "" for an empty list."""
    if isinstance(label, str):
        listed = parse_list(label)
        label = (label,) if listed is None else listed
    return normalize_label(label[0]) if label else ""


def _drop_fraction(label: str) -> str:
    return "" if label.casefold() == "nan" else label.partition(".")[0]


def _are_integers_written_as_floats(labels: Iterable[str]) -> bool:
    """Return whether all labels are integers, some of them written as floats (``1.0``), as pandas writes both NaN."""
    texts = {text for text in labels if text and text.casefold() != "nan"}
    numbers = [text.removeprefix("-").partition(".") for text in texts]
    are_whole = all(head.isdecimal() and not tail.strip("0") for head, _, tail in numbers)
    return bool(numbers) and are_whole and any(dot and tail for _, dot, tail in numbers)


def _read_row_split(row: Row, columns: Columns, table: Table) -> Split | None:
    text = row.get_text(columns.split) if columns.split else ""
    if not text or text.casefold() == UNASSIGNED:
        return None
    split = columns.splits.get(text)
    if split is None:
        raise DataError(
            f"{table.name}, {table.describe_row(row.line)}: split is {text!r}; expected train, "
            "validation or test. If this "
            "is not the column of splits, name it with --column split=NAME."
        )
    return split


def _no_items_message(table: Table, columns: Columns, listing: SourceListing, finder: FileFinder) -> str:
    column, missing = columns.path, [note.path for note in listing.notes if note.kind == "missing-files"]
    if columns.mask and not missing:
        column, missing = columns.mask, list(filter(None, table.list_texts(columns.mask)))
    if not table.rows:
        return f"{table.name} has no rows below its header ({', '.join(table.columns)}): add a row for each image."
    if not missing:
        rows = plural(len(table.rows), "row")
        return (
            f"{table.name} has {rows} but no label in column {columns.label or columns.mask!r}: name another with "
            "--column label=NAME."
        )
    store = finder.store
    where = store.root.absolute() if isinstance(store, FolderStore) else store.name
    if finder.is_ambiguous(missing[0]):
        return (
            f"{table.name} lists {plural(len(missing), 'file')} in column {column!r}, but several files in {where} "
            f"match {missing[0]}. List their paths from there, or name their folder with --set data.root=FOLDER."
        )
    archives = list(filter(is_archive, store.keys()))
    file = Path(table.name)
    if archives and isinstance(store, FolderStore) and file.is_file():
        likely = min(archives, key=lambda key: (Path(key).stem != file.stem, parse_split(Path(key).stem) == "test"))
        return (
            f"{table.name} lists {plural(len(missing), 'file')} in column {column!r}, none of which is in "
            f"{where}. If they are in {likely}, name it instead of the table, as in `sightline train "
            f"{quote_path(store.root / likely)} --set data.labels={quote_path(file)}`."
        )
    return (
        f"{table.name} lists {plural(len(missing), 'file')} in column {column!r}, none of which exists: "
        f"looked for {missing[0]} in {where}. Name the folder that the paths are relative to with --set "
        "data.root=FOLDER, or the column of the files with --column path=NAME."
    )
