"""Which column of a table holds the image, the label and the split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from sightline.config import ColumnsConfig
from sightline.data.sources.splits import read_split
from sightline.data.sources.table import Row, Table, fold
from sightline.errors import DataError

_NAMES: Mapping[str, tuple[str, ...]] = {  # as `fold` leaves them, the most telling first
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
_SAMPLE = 50  # rows, to tell which of two columns names files


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that play a role; with `one_hot`, each of those is a class, and there is no label column."""

    path: str
    label: str = ""
    split: str = ""
    one_hot: tuple[str, ...] = ()

    def label_of(self, row: Row) -> str | tuple[str, ...]:
        """Return the label of a row, or all of several."""
        if self.one_hot:
            return tuple(name for name in self.one_hot if _truth(row.text(name)) is True)
        return row.cells.get(self.label, "")


def choose_columns(table: Table, options: ColumnsConfig, is_file: Callable[[str], bool]) -> Columns:
    """Return which column plays which role: as `options` say, else by their names, else by what they hold.

    Raises `DataError`, naming the columns, where there is no column for the image or the label.
    """
    chosen = {f.name: _asked(table, f.name, getattr(options, f.name)) for f in fields(ColumnsConfig)}
    rows = table.rows[:_SAMPLE]
    if not chosen["path"]:
        candidates = _by_name(table, "path", chosen.values())
        if len(candidates) < 2:
            candidates = candidates or _holding(table, is_file, chosen.values())
        chosen["path"] = next((c for c in candidates if any(is_file(r.text(c)) for r in rows)), "") or _first(
            candidates
        )
    if not chosen["split"]:
        free = [c for c in table.columns if c not in chosen.values()]
        candidates = _by_name(table, "split", chosen.values()) if table.headed else free
        chosen["split"] = _first([c for c in candidates if _is_split(table, c)])
    if chosen["path"] and not chosen["label"]:
        free = [c for c in table.columns if c not in chosen.values()]
        candidates = _by_name(table, "label", chosen.values()) if table.headed or len(free) > 1 else free
        chosen["label"] = _first(candidates)
    one_hot: tuple[str, ...] = ()
    if chosen["path"] and not chosen["label"]:
        one_hot = tuple(c for c in table.columns if c not in chosen.values() and _is_one_hot(table, c))
    for role in ("path", "label"):
        if not chosen[role] and not (role == "label" and len(one_hot) > 1):
            raise DataError(_missing(table, role))
    return Columns(chosen["path"], chosen["label"], chosen["split"], one_hot if not chosen["label"] else ())


def _asked(table: Table, role: str, name: str) -> str:
    if not name or name in table.columns:
        return name
    for column in table.columns:
        if fold(column) == fold(name):
            return column
    raise DataError(f"{table.name} has no column {name!r} for data.columns.{role}: {_seen(table)}.")


def _by_name(table: Table, role: str, taken: Iterable[str]) -> list[str]:
    used = set(taken)
    folded = {fold(column): column for column in reversed(table.columns)}
    return [folded[name] for name in _NAMES[role] if name in folded and folded[name] not in used]


def _holding(table: Table, is_file: Callable[[str], bool], taken: Iterable[str]) -> list[str]:
    """Return the columns most of whose cells name image files, the one with the most first."""
    rows, used = table.rows[:_SAMPLE], set(taken)
    counts = {c: sum(is_file(row.text(c)) for row in rows) for c in table.columns if c not in used}
    return sorted((c for c, count in counts.items() if 2 * count > len(rows)), key=lambda c: -counts[c])


def _first(names: Sequence[str]) -> str:
    return names[0] if names else ""


def _is_split(table: Table, column: str) -> bool:
    """Tell whether a column states splits; one called `split` does, and is complained of where it does not."""
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
        f"{table.name} has no column that is known to hold {what}: {_seen(table)}. Name it with --column {role}=NAME "
        f"(data.columns.{role})."
    )


def _seen(table: Table) -> str:
    shown = ", ".join(table.columns[:12]) + (", ..." if len(table.columns) > 12 else "")
    if table.headed:
        return f"its columns are {shown}"
    first = ", ".join(str(table.rows[0].text(c)) for c in table.columns[:12])
    return f"it has no header, so that its columns are numbered {shown} (the first row: {first})"
