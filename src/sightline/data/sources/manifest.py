"""Labels and splits from a table: CSV or JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sightline.data.sources.filenames import PART_NAMES
from sightline.data.sources.listing import Entry, Listing
from sightline.data.stores import FolderStore
from sightline.errors import DataError


def manifest(path: Path) -> Listing:
    """Read a CSV (with a header) or JSON-lines manifest: ``path,label[,split]`` and any further columns.

    Paths are relative to the manifest's folder.
    """
    store = FolderStore(path.parent)
    entries = []
    for line, row in _rows(path):
        where = f"{path}, line {line}"
        file, label, split = row.pop("path", ""), row.pop("label", ""), row.pop("split", "")
        if not file or not label:
            raise DataError(f"{where}: expected the columns path and label, both filled in.")
        if split and split.lower() not in PART_NAMES:
            raise DataError(f"{where}: split is {split!r}; expected train, validation or test.")
        entries.append(Entry(store, file, file, label, PART_NAMES.get(split.lower()), row, named=True))
    return Listing(entries)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}.") from error
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        missing = {"path", "label"} - set(reader.fieldnames or ())
        if missing:
            raise DataError(f"{path} has no column {min(missing)!r}; its first line should be path,label[,split].")
        try:
            for row in reader:
                yield reader.line_num, {k: (v or "") for k, v in row.items() if k is not None}
        except csv.Error as error:
            raise DataError(
                f"{path}, line {reader.line_num + 1}: not CSV ({error}). Is a quotation mark left open?"
            ) from error
        return
    for number, line in enumerate(text.split("\n"), 1):  # JSON may hold the other line ends of splitlines
        if line.strip():
            yield number, _json_row(path, number, line)


def _json_row(path: Path, number: int, line: str) -> dict[str, str]:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number}: not JSON ({error.msg}).") from error
    if not isinstance(row, dict):
        raise DataError(f'{path}, line {number}: expected an object such as {{"path": "1.jpg", "label": "cat"}}.')
    return {str(k): "" if v is None else str(v) for k, v in row.items()}
