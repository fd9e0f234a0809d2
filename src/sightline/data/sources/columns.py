"""Choose the columns of a table that hold the image, the label and the split."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields

from sightline.config import ColumnsConfig
from sightline.data.sources.splits import read_split
from sightline.data.sources.table import IsFile, Row, Table, fold
from sightline.errors import DataError

_NAMES: Mapping[str, tuple[str, ...]] = {  # as normalized by `fold`, the most specific first
    "path": (
        "path", "filepath", "filename", "file", "imagepath", "imgpath", "imagefile", "imagename", "imgname", "image",
        "img", "images", "imageid", "imgid", "name", "id",
    ),
    "label": (
        "label", "labels", "class", "classname", "classlabel", "target", "category", "categoryname", "breed", "species",
        "y", "labelname", "classes", "categories", "tag", "tags", "diagnosis", "labelid", "classid", "categoryid",
    ),
    "split": ("split", "set", "subset", "partition", "usage", "phase", "fold"),
}  # fmt: skip
KNOWN = frozenset(name for names in _NAMES.values() for name in names)
_SAMPLE = 50  # rows read to decide which column holds file names


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns in use; with `one_hot`, each of those columns is a class, and there is no label column."""

    path: str
    label: str = ""
    split: str = ""
    one_hot: tuple[str, ...] = ()

    def label_of(self, row: Row) -> str | tuple[str, ...]:
        """Return the label of a row, or a tuple where the row has a list of labels."""
        if self.one_hot:
            return tuple(name for name in self.one_hot if _truth(row.text(name)) is True)
        return row.cells.get(self.label, "")


def choose_columns(table: Table, options: ColumnsConfig, is_file: IsFile) -> Columns:
    """Choose the column for each role: from `options`, else by column name, else by content.

    Raises `DataError`, listing the columns, if there is none for the image or the label.
    """
    asked = {f.name: _asked(table, f.name, getattr(options, f.name)) for f in fields(ColumnsConfig)}
    path = asked["path"] or _path_column(table, is_file, set(asked.values()))
    if not path:
        raise DataError(_missing(table, "path"))
    split = asked["split"] or _split_column(table, {path, asked["label"]})
    label = asked["label"] or _label_column(table, {path, split})
    if label:
        return Columns(path, label, split)
    one_hot = tuple(c for c in table.columns if c not in {path, split} and _is_one_hot(table, c))
    if len(one_hot) < 2:
        raise DataError(_missing(table, "label"))
    return Columns(path, "", split, one_hot)


def _path_column(table: Table, is_file: IsFile, taken: Collection[str]) -> str:
    named = _by_name(table, "path", taken)
    rows = table.rows[:_SAMPLE]
    held = [c for c in table.columns if c not in taken and 2 * sum(is_file(r.text(c)) for r in rows) > len(rows)]
    telling = [c for c in [*named, *held] if any(is_file(r.text(c)) for r in rows)]
    return _first([*telling, *named])


def _split_column(table: Table, taken: Collection[str]) -> str:
    free = [c for c in table.columns if c not in taken]
    return _first([c for c in (_by_name(table, "split", taken) if table.headed else free) if _is_split(table, c)])


def _label_column(table: Table, taken: Collection[str]) -> str:
    free = [c for c in table.columns if c not in taken]
    return _first(_by_name(table, "label", taken) if table.headed or len(free) > 1 else free)


def _asked(table: Table, role: str, name: str) -> str:
    if not name or name in table.columns:
        return name
    for column in table.columns:
        if fold(column) == fold(name):
            return column
    raise DataError(f"{table.name} has no column {name!r} for data.columns.{role}: {_seen(table)}.")


def _by_name(table: Table, role: str, taken: Collection[str]) -> list[str]:
    folded = {fold(column): column for column in reversed(table.columns)}
    return [folded[name] for name in _NAMES[role] if name in folded and folded[name] not in taken]


def _first(names: Sequence[str]) -> str:
    return names[0] if names else ""


def _is_split(table: Table, column: str) -> bool:
    """Return whether a column holds splits; one named `split` always does, so that a wrong value in it is an error."""
    cells = {text for row in table.rows if (text := row.text(column))}
    return bool(cells) and (fold(column) == "split" or all(read_split(text) for text in cells))


def _truth(text: str) -> bool | None:
    lower = text.strip().lower()
    if lower in {"1", "1.0", "true", "yes", "x"}:
        return True
    return False if lower in {"0", "0.0", "false", "no", ""} else None


def _is_one_hot(table: Table, column: str) -> bool:
    values = {_truth(row.text(column)) for row in table.rows}
    return None not in values and any(row.text(column) for row in table.rows)


def _missing(table: Table, role: str) -> str:
    what = "the image files" if role == "path" else "the labels"
    return (
        f"{table.name} has no recognized column for {what}: {_seen(table)}. Name it with --column {role}=NAME "
        f"(data.columns.{role})."
    )


def _seen(table: Table) -> str:
    shown = ", ".join(table.columns[:12]) + (", ..." if len(table.columns) > 12 else "")
    if table.headed:
        return f"its columns are {shown}"
    first = ", ".join(str(table.rows[0].text(c)) for c in table.columns[:12])
    return f"it has no header, so its columns are numbered {shown} (the first row: {first})"
