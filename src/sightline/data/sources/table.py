"""Read tables: CSV with any separator, tab-separated values, JSON lines, JSON lists, COCO."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sightline import jsonio
from sightline.data.sources.encoding import decode_text
from sightline.data.sources.filenames import is_hidden
from sightline.data.storage import LIMITS
from sightline.errors import DataError

_JSON_LINES = (".jsonl", ".ndjson", ".manifest")  # .manifest: Amazon SageMaker Ground Truth
TABLE_SUFFIXES = (".csv", ".tsv", ".json", *_JSON_LINES)
"""Extensions of the files that are read as tables."""

LIST_SUFFIXES = (".txt", ".lst")
"""Extensions of text files that may be tables, with cells that are often separated by spaces."""

IsFile = Callable[[str], bool]

_SEPARATORS = (",", ";", "\t", "|")
_MOST_COLUMNS = 10_000
_MOST_PARTS = 4  # objects and lists per row; COCO has a box and a polygon per annotation
_MOST_MISSING = 1_000_000  # limit on cells missing in short rows, in addition to the number of existing cells
_DEPTH = 4  # nesting depth of cells in a JSON row
_SAMPLE_LINES = 50  # lines read to detect the separator


class NestedName(str):
    """The name of a column whose cells are nested in an object in JSON rows: ``meta.site``."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its line number (or position in a list) and its cells; a JSON list becomes a tuple."""

    line: int
    cells: Mapping[str, str | tuple[str, ...]]

    def get_text(self, column: str) -> str:
        """Return the cell in `column` as text; empty if there is none."""
        cell = self.cells.get(column, "")
        return cell if isinstance(cell, str) else ";".join(cell)


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of the file `name`; without a header (`has_header`) the columns are numbered from 1.

    `unit` is what a message calls a row: a line, or an entry of a JSON list, whose line numbers are unknown.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    has_header: bool = True
    unit: str = "line"

    def describe_row(self, line: int) -> str:
        """Return the position of a row for a message."""
        return f"{self.unit} {line}"

    def list_texts(self, column: str) -> list[str]:
        """Return the cells in `column` as text."""
        return [row.get_text(column) for row in self.rows]


def read_table(
    data: bytes,
    name: str,
    known_columns: Collection[str],
    is_file: IsFile,
    encoding: str = "",
    max_rows: int = LIMITS.table_rows,
    *,
    may_be_spaced: bool = False,
) -> Table:
    """Parse the table in `data`, read from the file `name`.

    A first row with one of the `known_columns` columns is a header.

    `known_columns` are names normalized by `normalize_name`; `is_file(text)` returns whether a cell names an image, as
    no header does. With `may_be_spaced`, spaces separate the cells of a file without any usual separator. Raises
    `DataError` if `data` is not a table.
    """
    try:
        text = decode_text(data, encoding)
    except ValueError as error:
        raise DataError(
            f"{name} cannot be read as text: {error}. Save it as UTF-8, or set its encoding, such as "
            "--set data.encoding=cp1252."
        ) from error
    lower = name.lower()
    _check_size(text, name, max_rows)
    if lower.endswith(".json") or (lower.endswith(_JSON_LINES) and text.lstrip()[:1] == "["):
        return _read_json(text, name, max_rows)
    if lower.endswith(_JSON_LINES):
        return _make_table(_json_lines(text, name), name)
    if may_be_spaced and not any(map(text.__contains__, _SEPARATORS)):
        text = _separate_by_tabs(text, is_file)
    return _read_csv(text, name, known_columns, is_file)


def _separate_by_tabs(text: str, is_file: IsFile) -> str:
    """Replace spaces between cells by tabs; ``list_attr_celeba.txt`` begins with a count, then a line of columns.

    If lines have different numbers of words, the file name is the first word if it is a file, else all but the last.
    A comment is a header only if it has as many words as the lines.
    """
    lines = [line.split() for line in text.splitlines()]
    if lines and len(lines[0]) == 1 and lines[0][0].isdecimal():
        lines[0] = []
        if len(lines) > 2 and len(lines[1]) == len(lines[2]) - 1:
            lines[1] = ["path", *lines[1]]
    widths = {len(words) for words in lines if words and not words[0].startswith("#")}
    for i, words in enumerate(lines):
        if len(widths) > 1 and len(words) > 2:
            at = 1 if is_file(words[0]) or not is_file(" ".join(words[:-1])) else -1
            lines[i] = [" ".join(words[:at]), " ".join(words[at:])]
        elif words and words[0].startswith("#") and len(words) not in widths:
            lines[i] = [" ".join(words)]
    return "\n".join(map("\t".join, lines))


def may_be_table(key: str) -> bool:
    """Return whether a file among images may be a table of their labels or a list of images.

    Sample submissions of competitions are excluded, as their labels mean nothing.

    >>> may_be_table("meta/train.txt"), may_be_table("sample_submission.csv"), may_be_table("cat.jpg")
    (True, False, False)
    """
    lower = key.lower()
    if not lower.endswith((*TABLE_SUFFIXES, *LIST_SUFFIXES)):
        return False
    return "submission" not in lower.rpartition("/")[2] and not is_hidden(key)


def build_table(rows: Iterable[Mapping[str, Any]], name: str) -> Table:
    """Return the table of `rows` in memory, which messages call `name`."""
    return _make_table([_make_row(row, number, name) for number, row in enumerate(rows)], name, "row")


def _check_size(text: str, name: str, max_rows: int) -> None:
    """Raise `DataError` for more lines, objects or lists than `max_rows` rows need, before any is parsed."""
    if name.lower().endswith(".json"):
        _check_rows(name, (text.count("{") + text.count("[")) // _MOST_PARTS, max_rows)
    else:
        _check_rows(name, text.count("\n") + text.count("\r") - text.count("\r\n"), max_rows)


def _check_rows(name: str, rows: int, max_rows: int) -> None:
    if rows > max_rows:
        raise DataError(
            f"{name} has more than {max_rows:,} rows. Split it into several tables, or raise data.limits.table_rows."
        )


def normalize_name(column: str) -> str:
    """Return a column's name without case, spaces, dashes and underscores.

    >>> normalize_name(" Image_ID ")
    'imageid'
    """
    return "".join(c for c in column.casefold() if c.isalnum())


def _read_csv(text: str, name: str, known_columns: Collection[str], is_file: IsFile) -> Table:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    first = next((i for i, line in enumerate(lines) if line.strip() and not _is_separator_line(line)), 0)
    lines[:first] = [""] * first  # keeps line numbers
    header_line = lines[first].lstrip().lstrip("#")
    _check_width(name, max(header_line.count(separator) for separator in _SEPARATORS))
    titles = header_line.split(_detect_separator([header_line], name))
    if not set(known_columns).isdisjoint(map(normalize_name, titles)):  # a header may be a comment
        lines[first] = header_line
    lines = ["" if _is_comment(line, is_file) else line for line in lines]  # keeps line numbers
    separator = _detect_separator([line for line in lines if line.strip()][:_SAMPLE_LINES], name)
    rows = _parse_rows(lines, separator, name)
    if not rows:
        raise DataError(f"{name} has no rows; its first line should be path,label[,split].")
    has_header = _is_header(rows[0][1], known_columns, is_file)
    columns = rows[0][1] if has_header else [str(i + 1) for i in range(max(len(cells) for _, cells in rows))]
    body = rows[1:] if has_header else rows
    _check_width(name, len(columns))
    if {"region_shape_attributes", "region_attributes"} <= set(columns):
        raise DataError(
            f"{name} is from VGG Image Annotator, whose labels are attributes in JSON, which are not read: write a "
            "table with the columns path and label."
        )
    cells = sum(len(cells) for _, cells in body)
    if len(columns) * len(body) - cells > cells + _MOST_MISSING:  # padding short rows would fill memory
        raise DataError(f"{name} has {len(columns):,} columns, but its rows fill few of them: remove empty columns.")
    padded = ((line, [*cells, *[""] * (len(columns) - len(cells))]) for line, cells in body)
    table_rows = tuple(Row(line, dict(zip(columns, cells, strict=False))) for line, cells in padded)
    return Table(name, tuple(columns), table_rows, has_header)


def _parse_rows(lines: Sequence[str], separator: str, name: str) -> list[tuple[int, list[str]]]:
    """Return the number of the last line of each row that is not empty, and its cells.

    An unclosed quotation mark is an error, as it would join all rows below into one cell; a quotation mark within a
    cell, as in ``"12" nails"``, is not.
    """
    rows: list[tuple[int, list[str]]] = []
    is_strict = True
    while True:
        reader = csv.reader(
            io.StringIO("\n".join(lines), newline=""), delimiter=separator, skipinitialspace=True, strict=is_strict
        )
        rows.clear()
        try:
            rows.extend((reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells))
        except csv.Error as error:
            if is_strict and "expected after" in str(error):
                is_strict = False
                continue
            raise DataError(
                f"{name}, line {rows[-1][0] + 1 if rows else 1}: not CSV ({error}). Is a quotation mark unclosed?"
            ) from error
        return rows


def _detect_separator(lines: Sequence[str], name: str) -> str:
    """Return the separator that splits the first line and most others into the same number of cells."""
    best, score = "\t" if name.lower().endswith(".tsv") else ",", (0.0, 0)
    for separator in _SEPARATORS:
        try:
            counts = [len(cells) for cells in csv.reader(lines, delimiter=separator, skipinitialspace=True)]
        except csv.Error:  # raised again, with the line number, when the table is parsed
            continue
        if counts and counts[0] > 1:
            rank = (sum(count == counts[0] for count in counts) / len(counts), counts[0])
            if rank > score:
                best, score = separator, rank
    return best


def _is_separator_line(line: str) -> bool:
    """Return whether a line declares the separator for Excel, such as ``sep=;`` above the header."""
    text = line.strip().strip('"').casefold()
    return text.startswith("sep=") and len(text) <= len("sep=") + 1  # a tab has been stripped


def _is_comment(line: str, is_file: IsFile) -> bool:
    """Return whether a line is a comment, rather than a row whose first cell is a file such as ``#1.jpg``."""
    text = line.lstrip()
    return text.startswith("#") and not is_file(re.split(r"[,;\t|]", text)[0].strip())


def _is_header(cells: Sequence[str], known_columns: Collection[str], is_file: IsFile) -> bool:
    if {normalize_name(cell) for cell in cells} & set(known_columns):
        return True
    return not any(is_file(cell) for cell in cells)


def _json_lines(text: str, name: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(): JSON strings may contain other line ends
        if line.strip():
            try:
                value: Any = jsonio.loads(line)
            except ValueError as error:
                raise DataError(f"{name}, line {number}: not JSON ({getattr(error, 'msg', error)}).") from error
            yield _make_row(value, number, f"{name}, line {number}")


def _read_json(text: str, name: str, max_rows: int) -> Table:
    try:
        value: Any = jsonio.loads(text, math.inf)  # limited by `_check_size`
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON lines in a .json file
            return _make_table(_json_lines(text, name), name)
        raise DataError(f"{name}, line {error.lineno}: not JSON ({error.msg}).") from error
    except ValueError as error:
        raise DataError(f"{name}: not JSON ({error}).") from error
    if isinstance(value, dict) and {"images", "annotations"} <= set(value):
        return _make_table(_read_coco(value, name), name, "image")
    if isinstance(value, dict | list):
        _check_rows(name, len(value), max_rows)
    if isinstance(value, dict) and value and all(isinstance(v, str | int) for v in value.values()):
        value = [{"path": path, "label": label} for path, label in value.items()]
    if not isinstance(value, list):
        raise DataError(
            f'{name}: expected a list of objects such as {{"path": "1.jpg", "label": "cat"}}, or a COCO file with '
            "images, annotations and categories."
        )
    if value and isinstance(value[0], dict) and {"annotations", "data"} <= set(value[0]):
        raise DataError(f"{name} is in Label Studio's JSON format, which is not read: export it as JSON-MIN or CSV.")
    return _make_table([_make_row(row, i, f"{name}, entry {i}") for i, row in enumerate(value, 1)], name, "entry")


def _make_row(value: Any, number: int, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f'{where}: expected an object such as {{"path": "1.jpg", "label": "cat"}}.')
    return Row(number, dict(_list_cells(_name_ground_truth(value) if "source-ref" in value else value)))


def _name_ground_truth(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a Ground Truth row with its class names as ``label``, if it is from a single classification job."""
    labels: list[Any] = []
    for job, metadata in value.items():
        if isinstance(metadata, dict) and job.endswith("-metadata"):
            if "class-name" in metadata:
                labels.append(metadata["class-name"])
            elif isinstance(names := metadata.get("class-map"), dict) and isinstance(
                numbers := value.get(job.removesuffix("-metadata")), list
            ):
                labels.append([names.get(str(number), number) for number in numbers])
    return {**value, "label": labels[0]} if len(labels) == 1 else value


def _list_cells(value: Mapping[Any, Any], above: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    """Yield the names and cells of a row; an object in it yields the cells inside, such as ``meta.site``.

    Lists of objects, and objects nested in more than `_DEPTH` others, are left out: they are neither labels nor files.
    """
    for key, cell in value.items():
        name = NestedName(above + str(key).strip()) if above else str(key).strip()
        if isinstance(cell, Mapping):
            yield from _list_cells(cell, f"{name}.", depth + 1) if depth < _DEPTH else ()
        elif not (isinstance(cell, list) and any(isinstance(entry, Mapping) for entry in cell)):
            yield name, _convert_cell(cell)
        elif all(isinstance(entry, Mapping) and "displayName" in entry for entry in cell):  # Vertex AI
            yield NestedName(f"{name}.displayName"), _convert_cell([entry["displayName"] for entry in cell])


def _convert_cell(value: Any) -> str | tuple[str, ...]:
    if hasattr(value, "tolist"):  # NumPy, such as lists from a Parquet file in a DataFrame
        value = value.tolist()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, set | frozenset):
        value = sorted(map(str, value))
    if isinstance(value, list | tuple):
        return tuple(str(_convert_cell(v)) for v in value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _make_table(rows: Iterator[Row] | Sequence[Row], name: str, unit: str = "line") -> Table:
    table_rows = tuple(rows)
    columns = tuple(dict.fromkeys(column for row in table_rows for column in row.cells))
    _check_width(name, len(columns))
    return Table(name, columns, table_rows, unit=unit)


def _check_width(name: str, columns: int) -> None:
    if columns > _MOST_COLUMNS:
        raise DataError(f"{name} has {columns:,} columns, but a table may have at most {_MOST_COLUMNS:,}.")


def _read_coco(value: Mapping[str, Any], name: str) -> Iterator[Row]:
    """Yield a row for each image of a COCO file, with the names of its categories.

    The format is that of T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context"; boxes are ignored.
    """
    try:
        names = {c["id"]: str(c["name"]) for c in value.get("categories", [])}
        labels: dict[Any, list[str]] = {}
        for annotation in value["annotations"]:
            label = names.get(annotation["category_id"], str(annotation["category_id"]))
            labels.setdefault(annotation["image_id"], []).append(label)
        images = [(str(image["file_name"]), labels.get(image["id"], [])) for image in value["images"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{name} looks like a COCO file, but {error} is missing or invalid.") from error
    for number, (file, image_labels) in enumerate(images, 1):
        yield Row(number, {"path": file, "label": tuple(dict.fromkeys(image_labels))})
