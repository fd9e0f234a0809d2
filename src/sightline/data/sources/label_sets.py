"""Tables that give an image several labels: recognize them, and read the classes of each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sightline import jsonio
from sightline.data.sources.columns import Columns
from sightline.data.sources.file_labels import normalize_label
from sightline.data.sources.table import Row, Table
from sightline.data.targets import SEPARATOR, join_classes
from sightline.data.types import SourceNote
from sightline.errors import DataError

_PLURAL_COLUMNS = {"finding labels", "labels", "tags", "classes", "categories"}
_SURE_SEPARATORS = (";", "|")  # rarely part of class names
_CELL_SEPARATORS = (*_SURE_SEPARATORS, ",", " ")


@dataclass(frozen=True, slots=True)
class LabelSets:
    """How the rows of a table give an image several labels; `evidence` is a sentence on the first row that does.

    `separator` separates names in one cell; "" if a row has a list, one column per class, or a single class.
    """

    table: Table
    columns: Columns
    evidence: str
    separator: str = ""

    def read_label(self, row: Row) -> str:
        """Return the label of a row in the form of `LabelSetTargets`."""
        label = self.columns.read_label(row)
        if isinstance(label, str):
            listed = parse_list(label)
            label = listed if listed is not None else tuple(label.split(self.separator) if self.separator else [label])
        names = [name for name in map(normalize_label, label) if name]
        for name in names:
            if SEPARATOR in name:
                raise DataError(
                    f"{self.table.name}, {self.table.describe_row(row.line)}: the class name {name!r} contains "
                    f"{SEPARATOR!r}, which separates the labels of an image: rename the class."
                )
        return join_classes(names)


def find_label_sets(table: Table, columns: Columns) -> LabelSets | None:
    """Return how `table` gives images several labels: as lists, in one cell, or in one column for each class.

    None if each image has one label. A cell such as ``a;b`` contains two labels if its parts recur in other cells, or
    if the column is named labels, tags, classes or categories. A cell such as ``a b`` needs both, ``1 5`` does not.
    """
    for row in table.rows:
        label = columns.read_label(row)
        if isinstance(label, str):
            label = parse_list(label) or ()
        if len(label) > 1:
            return LabelSets(table, columns, _describe(table, row, columns, ", ".join(label)))
    if columns.one_hot or columns.labels:
        return None
    cells = table.list_texts(columns.label)
    for separator in _CELL_SEPARATORS:
        first = next((row for row, cell in zip(table.rows, cells, strict=True) if separator in cell), None)
        if first is not None and _has_several_labels(cells, separator, columns.label):
            return LabelSets(table, columns, _describe(table, first, columns, first.get_text(columns.label)), separator)
    return None


def find_separator(table: Table, columns: Columns) -> str:
    """Return the separator, ``;`` or ``|``, that occurs in label cells; "" if none does, as with lists.

    It separates labels in tasks with several labels per image, whether or not `find_label_sets` recognizes it.
    """
    if columns.one_hot or columns.labels:
        return ""
    labels = {label for row in table.rows if isinstance(label := columns.read_label(row), str)}
    cells = [label for label in labels if parse_list(label) is None]
    return next((separator for separator in _SURE_SEPARATORS if any(separator in cell for cell in cells)), "")


def read_rows_as_labels(table: Table, columns: Columns, conflict: SourceNote) -> LabelSets:
    """Return label sets for a table with one row per label; `conflict` is the first second row for an image."""
    evidence = f"{table.name}, {conflict.reason}: an earlier row gives {conflict.path} another label"
    return LabelSets(table, columns, evidence, find_separator(table, columns))


def parse_list(text: str) -> tuple[str, ...] | None:
    """Return the names in a JSON list; None for any other text."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        values = jsonio.loads(text)
    except ValueError:
        return None
    return tuple(map(str, values)) if all(isinstance(value, str | int) for value in values) else None


def _has_several_labels(cells: Sequence[str], separator: str, column: str) -> bool:
    distinct = {cell for cell in cells if cell}
    joined = {cell for cell in distinct if separator in cell}
    pieces = {piece.strip() for cell in joined for piece in cell.split(separator)} - {""}
    is_plural = column.strip().lower() in _PLURAL_COLUMNS
    if len(pieces | (distinct - joined)) < len(distinct):
        return is_plural or separator != " " or all(map(str.isdecimal, pieces))
    return separator not in ", " and (bool(pieces & distinct) or is_plural)


def _describe(table: Table, row: Row, columns: Columns, labels: str) -> str:
    several = "the one-hot columns give" if columns.one_hot else f"columns {', '.join(columns.labels)} give"
    giver = f"column {columns.label!r} gives" if columns.label else several
    place = f"{table.name}, {table.describe_row(row.line)}"
    return f"{place}: {giver} {row.get_text(columns.path)} several labels ({labels})"
