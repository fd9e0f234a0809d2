"""Read labels and splits from a table: a manifest, or a table of labels for a folder of images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sightline.config import DataConfig
from sightline.data.sources.columns import KNOWN, Columns, choose_columns
from sightline.data.sources.file_labels import tidy
from sightline.data.sources.filenames import is_hidden, is_picture_name
from sightline.data.sources.finder import Finder
from sightline.data.sources.listing import Entry, Listing
from sightline.data.sources.splits import read_split, split_name
from sightline.data.sources.table import SUFFIXES, Row, Table, fold, read_table
from sightline.data.sources.text import GUESSED, find_encoding
from sightline.data.stores import FileStore, FolderStore, read_file
from sightline.errors import DataError, PictureError, plural
from sightline.records import Part, Reject, Remark

DEFAULTS = DataConfig()
CONFLICTS = 0.01  # fraction of files with conflicting rows above which they are taken for several labels per image
_PLURALS = {"labels", "tags", "classes", "categories"}
_SEVERAL = (
    "Several labels per image (multi-label classification) are not supported yet: give one class per image, or name "
    "another column with --column label=NAME."
)


def is_table(path: Path) -> bool:
    """Return whether a file has the extension of a table."""
    return path.name.lower().endswith(SUFFIXES)


def manifest(path: Path, options: DataConfig = DEFAULTS) -> Listing:
    """Read a manifest: a table with a column of image files, one of labels, and optionally one of splits.

    Paths are relative to ``data.root``, else to the manifest's folder. Rows without a label or with a missing file are
    left out and reported. Raises `DataError` for a table that cannot be parsed, that gives an image several labels, or
    none of whose files exists.
    """
    root = Path(options.root).expanduser() if options.root else path.parent
    if not root.is_dir():
        raise DataError(
            f"data.root {options.root!r} is not a folder: name the folder that the paths in {path} are relative to."
        )
    finder = Finder(FolderStore(root, options.limits))
    return label_by_table(_content(path, options), str(path), finder, options)


def labels_beside(store: FileStore, folder: Path | None) -> tuple[bytes, str] | None:
    """Find the table of labels for the images in `store`, inside it or next to `folder`; return its content and name.

    It is the table with columns for image and label that names the most images; None if no table does.
    """
    keys = store.keys()
    inside = [k for k in keys if k.lower().endswith(SUFFIXES) and not is_hidden(k) and k.count("/") < 2]
    tables: list[tuple[bytes, str]] = []
    for key in inside:
        try:
            content = store.read(key)
        except PictureError as error:
            raise DataError(f"{store.name}/{key} cannot be read: {error}.") from error
        if isinstance(content, bytes):
            tables.append((content, f"{store.name}/{key}"))
    if folder is not None:
        stems = {folder.resolve().name.lower(), "labels"}
        with suppress(OSError):  # the parent folder may be unreadable
            beside = sorted(p for p in folder.resolve().parent.iterdir() if is_table(p) and p.stem.lower() in stems)
            for path in beside:
                with suppress(DataError):  # not a table that the user named
                    tables.append((_content(path), str(path)))
    finder = Finder(store)
    ranked = [(_labeled(content, name, finder), (content, name)) for content, name in tables]
    count, best = max(ranked, key=lambda at: at[0], default=(0, None))
    return best if count else None


def _labeled(content: bytes, name: str, finder: Finder) -> int:
    """Return the number of images that a table labels."""
    try:
        table, columns = _understood(content, name, finder, DEFAULTS)
    except DataError:
        return 0
    return sum(finder.find(row.text(columns.path)) is not None for row in table.rows)


def _content(path: Path, options: DataConfig = DEFAULTS) -> bytes:
    try:
        return read_file(path, options.limits)
    except PictureError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def _understood(content: bytes, name: str, finder: Finder, options: DataConfig) -> tuple[Table, Columns]:
    asked = {fold(name) for name in (options.columns.path, options.columns.label, options.columns.split)}
    known = KNOWN | {a for a in asked if not a.isdigit()} - {""}
    table = read_table(content, name, known, finder.is_file, options.encoding)
    return table, choose_columns(table, options.columns, finder.is_file)


def label_by_table(
    content: bytes, name: str, finder: Finder, options: DataConfig = DEFAULTS, prefix: str = "", *, whole: bool = False
) -> Listing:
    """List the images that a table labels, from the store of `finder`.

    `whole`: the store itself is the source, so its unlabeled images are listed too, and a folder such as ``train``
    states the split if the table does not.
    """
    table, columns = _understood(content, name, finder, options)
    _refuse_multiple(table, columns)
    rows = _Rows(table, columns, finder, prefix, by_folder=whole and not columns.split)
    listing = rows.to_listing()
    if not listing.entries:
        raise DataError(_nothing(table, columns, listing, finder))
    if not options.encoding and find_encoding(content) == GUESSED:
        listing.remarks.append(Remark("guessed-encoding", name))
    if whole:
        _rest(listing, finder.store, prefix, {e.key for e in listing.entries})
        listing.remarks.append(Remark("labels-from-table", name, f"column {columns.label}" if columns.label else ""))
    return listing


@dataclass(frozen=True, slots=True)
class _Rows:
    """Converts the rows of a table to a listing; with `by_folder`, folders state the splits."""

    table: Table
    columns: Columns
    finder: Finder
    prefix: str
    by_folder: bool

    def to_listing(self) -> Listing:
        """Return an entry for each file; raises `DataError` if too many files have rows with different labels."""
        listing = Listing([])
        numbers = _all_whole(row.text(self.columns.label) for row in self.table.rows) if self.columns.label else False
        first: dict[str, tuple[int, str]] = {}
        for row in self.table.rows:
            label = _one(self.columns.label_of(row))
            label = label.partition(".")[0] if numbers else label
            key = self.finder.find(row.text(self.columns.path))
            fault = self._fault(row, label, key, first)
            if fault:
                kind, reason = fault
                place = self.table.place(row.line)
                shown = self._shown(row, key) or place
                listing.remarks.append(Remark(kind, shown, place))
                listing.stray.append(Reject(shown, reason, label if kind == "missing-files" else ""))
            elif key is not None and key not in first:  # an equal row is a repetition
                listing.entries.append(self._entry(row, label, key))
                first[key] = row.line, label
        conflicts = [r for r in listing.remarks if r.kind == "conflicting-rows"]
        if len(conflicts) > CONFLICTS * len(first):
            raise DataError(
                f"{self.table.name}, {conflicts[0].reason}: an earlier row gives {conflicts[0].path} a different label "
                f"({plural(len(conflicts), 'such row')} in total). {_SEVERAL}"
            )
        return listing

    def _fault(
        self, row: Row, label: str, key: str | None, first: dict[str, tuple[int, str]]
    ) -> tuple[str, str] | None:
        """Return the kind and the reason if a row is left out."""
        where = f"{self.table.place(row.line)} of {self.table.name}"
        if not label:
            return "empty-labels", f"{where} has no label"
        if not row.text(self.columns.path):
            return "empty-labels", f"{where} has no file"
        if key is None:
            return "missing-files", f"the file is missing ({where})"
        line, other = first.get(key, (0, label))
        if other == label:
            return None
        return "conflicting-rows", f"{where} has a different label than {self.table.place(line)}"

    def _shown(self, row: Row, key: str | None) -> str:
        text = row.text(self.columns.path)
        return self.prefix + (key or text) if text else ""

    def _entry(self, row: Row, label: str, key: str) -> Entry:
        columns = self.columns
        roles = {columns.path, columns.label, columns.split, *columns.one_hot}
        split = _folder_split(key) if self.by_folder else _split(row, columns, self.table)
        extra = {c: row.text(c) for c in row.cells if c not in roles}
        return Entry(self.finder.store, key, self._shown(row, key), label, split, extra, named=True)


def _one(label: str | tuple[str, ...]) -> str:
    return tidy(label) if isinstance(label, str) else tidy(label[0]) if label else ""


def _all_whole(labels: Iterable[str]) -> bool:
    """Return whether all labels are integers, some of them written as floats (``1.0``)."""
    texts = {text for text in labels if text}
    numbers = [text.removeprefix("-").partition(".") for text in texts]
    whole = all(head.isdecimal() and not tail.strip("0") for head, _, tail in numbers)
    return bool(numbers) and whole and any(dot and tail for _, dot, tail in numbers)


def _split(row: Row, columns: Columns, table: Table) -> Part | None:
    text = row.text(columns.split) if columns.split else ""
    if not text:
        return None
    split = read_split(text)
    if split is None:
        raise DataError(
            f"{table.name}, {table.place(row.line)}: split is {text!r}; expected train, validation or test. If this "
            "is not the column of splits, name it with --column split=NAME."
        )
    return split


def _folder_split(key: str) -> Part | None:
    for folder in PurePosixPath(key).parts[:-1]:
        name = split_name(folder)
        if name is not None and name.certain:
            return name.split
    return None


def _rest(listing: Listing, store: FileStore, prefix: str, labeled: Collection[str]) -> None:
    """Add the images of the store that the table does not label, by folder, and pass over other files."""
    folders: dict[str, list[str]] = defaultdict(list)
    keys = store.keys()
    for key in keys:
        if key in labeled:
            continue
        if is_picture_name(key) and not is_hidden(key):
            folders[str(PurePosixPath(key).parent)].append(prefix + key)
        else:
            listing.passed_over.append(prefix + key)
    for folder, paths in sorted(folders.items()):
        listing.unlabeled.extend(paths)
        listing.remarks.append(Remark("unlabeled", prefix + folder, plural(len(paths), "image")))


def _refuse_multiple(table: Table, columns: Columns) -> None:
    """Raise `DataError` if images have several labels: in a list, in one cell, or in one-hot columns."""
    for row in table.rows:
        label = columns.label_of(row)
        if isinstance(label, tuple) and len(label) > 1:
            raise DataError(_multiple(table, row, columns, ", ".join(label)))
    if columns.one_hot:
        return
    cells = [row.text(columns.label) for row in table.rows]
    for separator in ";|,":
        several = [row for row, cell in zip(table.rows, cells, strict=True) if separator in cell]
        if several and _says_several(cells, separator, columns.label):
            raise DataError(_multiple(table, several[0], columns, several[0].text(columns.label)))


def _says_several(cells: Sequence[str], separator: str, column: str) -> bool:
    """Return whether cells hold several labels: the same ones recur in other combinations."""
    distinct = {cell for cell in cells if cell}
    joined = {cell for cell in distinct if separator in cell}
    parts = {part.strip() for cell in joined for part in cell.split(separator)} - {""}
    if len(parts | (distinct - joined)) < len(distinct):
        return True
    return separator != "," and (bool(parts & distinct) or column.strip().lower() in _PLURALS)


def _multiple(table: Table, row: Row, columns: Columns, labels: str) -> str:
    where = f"column {columns.label!r} gives" if columns.label else "the one-hot columns give"
    place = f"{table.name}, {table.place(row.line)}"
    return f"{place}: {where} {row.text(columns.path)} several labels ({labels}). {_SEVERAL}"


def _nothing(table: Table, columns: Columns, listing: Listing, finder: Finder) -> str:
    missing = [r for r in listing.remarks if r.kind == "missing-files"]
    if not table.rows:
        return f"{table.name} has no rows below its header ({', '.join(table.columns)}): add a row for each image."
    if not missing:
        rows = plural(len(table.rows), "row")
        return (
            f"{table.name} has {rows} but no label in column {columns.label!r}: name another with --column label=NAME."
        )
    store = finder.store
    where = store.root.absolute() if isinstance(store, FolderStore) else store.name
    return (
        f"None of the {plural(len(missing), 'file')} that {table.name} lists in column {columns.path!r} exists: "
        f"looked for {missing[0].path} in {where}. Name the folder that the paths are relative to with --set "
        "data.root=FOLDER, or the column of the files with --column path=NAME."
    )


def read_labels(path: Path, store: FileStore, options: DataConfig, prefix: str) -> Listing:
    """Label the images in `store` with the table at `path`; raises `DataError` as `manifest` does."""
    return label_by_table(_content(path, options), str(path), Finder(store), options, prefix, whole=True)
