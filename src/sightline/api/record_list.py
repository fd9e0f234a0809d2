"""`RecordList`: rows that show as a table in a notebook and turn into a DataFrame."""

from __future__ import annotations

from collections import UserList
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, SupportsIndex, TypeVar, overload

from rich.cells import cell_len

from sightline.errors import require

T = TypeVar("T")
MAX_ROWS = 20  # maximum number of rows shown


class RecordList(UserList[T]):
    """A list of values of one type, each of which is a row of a table.

    `to_row` returns the cells of a value by column; a missing cell is empty. `columns` are the columns of a table
    without rows.
    """

    def __init__(
        self, values: Iterable[T] = (), to_row: Callable[[T], Mapping[str, Any]] = vars, columns: Sequence[str] = ()
    ) -> None:
        super().__init__(values)
        self._to_row, self._columns = to_row, columns

    @overload
    def __getitem__(self, index: SupportsIndex) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> RecordList[T]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> T | RecordList[T]:
        """Return one value, or for a slice a list of values that keeps the columns."""
        return self._with(self.data[index]) if isinstance(index, slice) else self.data[index]

    def __add__(self, other: Iterable[T]) -> RecordList[T]:
        """Return the values of both, keeping the columns."""
        return self._with([*self.data, *other])

    def __radd__(self, other: Iterable[T]) -> RecordList[T]:
        """Return the values of both, as needed by `sum`."""
        return self._with([*other, *self.data])

    def __mul__(self, count: int) -> RecordList[T]:
        """Return the values repeated `count` times."""
        return self._with(self.data * count)

    __rmul__ = __mul__

    def copy(self) -> RecordList[T]:
        """Return a list of the same values, keeping the columns."""
        return self._with(self.data)

    def _with(self, values: Iterable[T]) -> RecordList[T]:
        return RecordList(values, self._to_row, self._columns)

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with a row for each value.

        Raises `MissingExtraError`, which names the package to install, without pandas.
        """
        return build_frame([self._to_row(value) for value in self.data], self._columns)

    def __repr__(self) -> str:
        return format_text_table(self._first_rows, len(self.data))

    def _repr_html_(self) -> str:
        return format_html_table(self._first_rows, len(self.data))

    @property
    def _first_rows(self) -> list[Mapping[str, Any]]:
        return omit_empty_columns([self._to_row(value) for value in self.data[:MAX_ROWS]])


def build_frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> Any:
    """Return a pandas DataFrame of `rows`, or an empty one of `columns`; raises `MissingExtraError` without pandas."""
    frame = require("pandas", "A DataFrame").DataFrame
    return frame(list(rows)) if rows else frame(columns=list(columns))


def omit_empty_columns(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return `rows` without the columns that are None in all of them.

    >>> omit_empty_columns([{"epoch": 1, "penalty": None}, {"epoch": 2, "penalty": None}])
    [{'epoch': 1}, {'epoch': 2}]
    """
    filled = {name for row in rows for name, value in row.items() if value is not None}
    return [{name: value for name, value in row.items() if name in filled} for row in rows]


def format_text_table(rows: Sequence[Mapping[str, Any]], count: int | None = None) -> str:
    """Return `rows`, the first of `count` rows in total, as text in aligned columns.

    >>> print(format_text_table([{"class": "cat", "images": 12}, {"class": "horse", "images": 3}], 3))
    class  images
    cat    12
    horse  3
    ... and 1 more row
    >>> print(format_text_table([{"loss": 0.123456, "images_per_second": 13355.3}]))
    loss    images_per_second
    0.1235  13,355
    >>> print(format_text_table([{"class": "猫", "images": 1}, {"class": "金毛猎犬", "images": 2}]))  # 2 columns each
    class     images
    猫        1
    金毛猎犬  2
    """
    if not rows:
        return "no rows"
    columns = _list_columns(rows)
    table = [columns, *([_format_cell(row.get(name)) for name in columns] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]  # a Chinese character takes 2 columns
    lines = ["  ".join(map(_pad, row, widths)).rstrip() for row in table]
    return "\n".join([*lines, *_describe_rest(len(rows), count)])


def format_html_table(rows: Sequence[Mapping[str, Any]], count: int | None = None, title: str = "") -> str:
    """Return `rows`, the first of `count` rows in total, as an HTML table."""
    heading = f"<p><b>{escape(title)}</b></p>" if title else ""
    if not rows:
        return heading or "<p>no rows</p>"
    columns = _list_columns(rows)
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    cells = ([f"<td>{escape(_format_cell(row.get(name)))}</td>" for name in columns] for row in rows)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    rest = "".join(f"<p>{text}</p>" for text in _describe_rest(len(rows), count))
    return f"{heading}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"


def _pad(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def _list_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _format_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    text = str(value)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)  # a file name may contain control characters


def _describe_rest(displayed: int, count: int | None) -> list[str]:
    rest = displayed if count is None else count
    return [f"... and {rest - displayed:,} more row{'s' * (rest - displayed > 1)}"] if rest > displayed else []
