"""Images in a column of a Parquet or an Arrow file: encoded bytes, or the ``{"bytes", "path"}`` of Hugging Face.

One row group is read at a time, and the last two are in memory. The sizes that the file declares are checked against
`LimitsConfig` before any image is read.
"""

from __future__ import annotations

import mmap
import re
import threading
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from sightline import jsonio
from sightline._io import open_regular
from sightline.config import LimitsConfig
from sightline.data.archives import check_count, check_size
from sightline.data.arrow_messages import read_messages
from sightline.data.storage import HEADER_BYTES, LIMITS, CheckHeader, accept_any, check_file_size
from sightline.errors import DataError, ImageError, first_line, require

TABLE_SUFFIXES = (".parquet", ".arrow", ".feather")
_PURPOSE = "Reading Parquet and Arrow files"
_KEY = re.compile(r"row-(0|[1-9]\d{0,11})")
_MAX_GROUP_BYTES = 1 << 30  # bytes of images per row group, which is read whole; Hugging Face writes 100 rows
_LONG_TEXT = 256  # characters; equal labels longer than this are stored once
_MAX_LONG_TEXTS = 1 << 28  # total characters of distinct long texts in a file
_MAX_BATCH_ROWS = 1 << 16  # rows read at a time, the default of pyarrow
_MAX_BATCH_BYTES = 1 << 28  # bytes read at a time; pyarrow temporarily takes up to three times as much
_ARROW_START = 8  # offset of the stream in an Arrow file
_GROUPS_IN_MEMORY = 2  # images are read in order, a few batches ahead
_NAMES = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "bytes", "content", "data")


def is_image_table(name: str) -> bool:
    """Return whether a name has the extension of an image table; at an address, it may be a folder of parts."""
    return name.lower().endswith(TABLE_SUFFIXES)


class _Groups(Protocol):
    """An opened file: its schema, the number of rows in each group, and functions to read them."""

    def __init__(self, path: Path) -> None: ...

    schema: Any
    sizes: list[int]

    def count_bytes(self, column: str) -> Sequence[int]:
        """Return the uncompressed size of a column in each group, in bytes."""

    def iterate(self, group: int, columns: Sequence[str]) -> Iterator[Any]:
        """Yield columns of a group as pyarrow batches of at most `_MAX_BATCH_BYTES`, or of one row.

        A file may store a value once for many rows, so the rows may take more memory than the stated size.
        """


class ImageTable:
    """The images in a column of a file; keys are ``row-0``, ``row-1`` and so on.

    `column` is the image column; "" detects it. Raises `DataError` for a file without images or beyond the limits.
    """

    repeated_names: tuple[str, ...] = ()

    def __init__(self, path: Path, limits: LimitsConfig = LIMITS, column: str = "") -> None:
        self.name = path.name
        self._path, self._limits = path, limits
        self._lock = threading.Lock()
        self._loaded: OrderedDict[int, Any] = OrderedDict()
        self._unreadable: dict[int, str] = {}
        arrow = require("pyarrow", _PURPOSE)
        try:
            is_parquet = path.suffix.lower() == ".parquet"
            opener: type[_Groups] = _ParquetGroups if is_parquet else _ArrowGroups
            self._groups = opener(path)
            self.column = _choose_column(self._groups.schema, column, path)
            sizes = self._groups.count_bytes(self.column)
            _check_numbers([*sizes, *self._groups.sizes])
        except (OSError, ValueError, arrow.ArrowException) as error:
            raise DataError(f"{path} is not a readable Parquet or Arrow file: {first_line(error)}.") from error
        self._ends = list(accumulate(self._groups.sizes))
        check_count(path, len(self), limits)
        check_size(path, sum(sizes), limits)
        if max(sizes, default=0) > _MAX_GROUP_BYTES:
            raise DataError(
                f"{path} has a group of rows with {max(sizes):,} bytes of images, which would be in memory at once: "
                "write it with fewer rows in a group, e.g. row_group_size=100."
            )

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def keys(self) -> Sequence[str]:
        """Return the keys of all rows, in order."""
        return [f"row-{row}" for row in range(len(self))]

    def folders(self) -> Sequence[str]:
        """Return no folder."""
        return ()

    def contains(self, key: str) -> bool:
        """Return whether there is a row with this key."""
        match = _KEY.fullmatch(key)
        return match is not None and int(match[1]) < len(self)

    def read(self, key: str, check: CheckHeader = accept_any) -> bytes:
        """Return the encoded image of a row, after `check` has accepted its first bytes."""
        row = int(key.removeprefix("row-"))
        group = bisect_right(self._ends, row)
        cell = self._load(group)[row - (self._ends[group] - self._groups.sizes[group])]
        if not cell.is_valid:
            raise ImageError("the row has no bytes of an image")
        view = memoryview(cell.as_buffer())
        check(bytes(view[:HEADER_BYTES]))
        check_file_size(len(view), self._limits)
        return bytes(view)

    def _load(self, group: int) -> Any:
        """Return the encoded images of a group as a pyarrow chunked array."""
        arrow = require("pyarrow", _PURPOSE)
        with self._lock:
            if group in self._unreadable:
                raise ImageError(self._unreadable[group])
            if group not in self._loaded:
                try:
                    values = self._read_images(group)
                    if arrow.types.is_struct(values.type):
                        values = require("pyarrow.compute", _PURPOSE).struct_field(values, "bytes")
                except (OSError, ValueError, arrow.ArrowException) as error:
                    self._unreadable[group] = f"the rows cannot be read: {first_line(error)}"
                    raise ImageError(self._unreadable[group]) from error
                self._loaded[group] = values
                if len(self._loaded) > _GROUPS_IN_MEMORY:
                    self._loaded.popitem(last=False)
            return self._loaded[group]

    def _read_images(self, group: int) -> Any:
        arrow = require("pyarrow", _PURPOSE)
        chunks, size = [], 0
        for batch in self._groups.iterate(group, [self.column]):
            chunk = batch.column(self.column)
            size += chunk.nbytes
            if size > _MAX_GROUP_BYTES:
                raise ValueError(f"a group of them unpacks to more than {_MAX_GROUP_BYTES:,} bytes")
            chunks.append(chunk)
        values = arrow.chunked_array(chunks, self._groups.schema.field(self.column).type)
        values.validate(full=True)  # offsets in an untrusted file may be wrong
        _check_length(len(values), self._groups.sizes[group])
        return values

    def read_rows(self) -> Iterator[Mapping[str, Any]]:
        """Yield the cells of each row, with the key in place of the image and names in place of class numbers.

        Columns of other types than text, numbers or lists of them are left out. Raises `DataError` for a damaged file.
        """
        try:
            yield from self._iterate_rows()
        except (OSError, ValueError, LookupError, require("pyarrow", _PURPOSE).ArrowException) as error:
            raise DataError(f"{self._path} has labels that cannot be read: {first_line(error)}.") from error

    def _iterate_rows(self) -> Iterator[Mapping[str, Any]]:
        names, long_texts = _read_class_names(self._groups.schema), _LongTexts()
        columns = [f.name for f in self._groups.schema if f.name != self.column and _holds_labels(f.type)]
        row = 0
        for group in range(len(self._groups.sizes)):
            for cells in self._read_cells(group, columns) if columns else [{}] * self._groups.sizes[group]:
                named = {
                    name: _name_class(long_texts.keep_once(value), names.get(name)) for name, value in cells.items()
                }
                yield {self.column: f"row-{row}", **named}
                row += 1

    def _read_cells(self, group: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        count = 0
        for batch in self._groups.iterate(group, columns):
            count += batch.num_rows
            yield from batch.to_pylist()
        _check_length(count, self._groups.sizes[group])


class _LongTexts:
    """The long texts among the cells of a file: equal texts are stored once, and their total length is limited."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._size = 0

    def keep_once(self, value: Any) -> Any:
        """Return a cell; a long text equal to an earlier one is replaced by the same object."""
        if not isinstance(value, str) or len(value) <= _LONG_TEXT:
            return value
        if value not in self._texts:
            self._size += len(value)
            if self._size > _MAX_LONG_TEXTS:
                raise ValueError(f"its long texts have more than {_MAX_LONG_TEXTS:,} characters")
        return self._texts.setdefault(value, value)


class _ParquetGroups:
    def __init__(self, path: Path) -> None:
        file = open_regular(path)  # not opened by path in pyarrow, as the file there may have been replaced by then
        weakref.finalize(self, file.close)
        self._file = require("pyarrow.parquet", _PURPOSE).ParquetFile(file)
        self.schema = self._file.schema_arrow
        metadata = self._file.metadata
        self.sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    def count_bytes(self, column: str) -> Sequence[int]:
        return [count_group_bytes(self._file.metadata, group, {column}) for group in range(len(self.sizes))]

    def iterate(self, group: int, columns: Sequence[str]) -> Iterator[Any]:
        rows = choose_rows(count_group_bytes(self._file.metadata, group, columns))
        yield from self._file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)


class _ArrowGroups:
    """The batches of a memory-mapped Arrow file or stream, such as those that Hugging Face's `datasets` saves.

    A file is read as the stream that it contains. A compressed batch is decompressed when it is read.
    """

    def __init__(self, path: Path) -> None:
        self._arrow = require("pyarrow", _PURPOSE)
        with open_regular(path) as file:  # not by path, see _ParquetGroups
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # ValueError: the file is empty
        source = self._arrow.BufferReader(mapped)
        count = None
        if source.read(6) == b"ARROW1":
            count = self._arrow.ipc.open_file(source).num_record_batches  # raises for a truncated file
        start = 0 if count is None else _ARROW_START
        source.seek(start)
        self._schema_message, self._messages = read_messages(source, _PURPOSE)
        self._positions = [i for i, message in enumerate(self._messages) if message.is_batch]
        self._dictionaries = [i for i, message in enumerate(self._messages) if not message.is_batch]
        if count not in {None, len(self._positions)}:
            raise ValueError(f"its end states {count:,} batches, but there are {len(self._positions):,}")
        self._is_compressed = any(message.uncompressed_bytes is not None for message in self._messages)
        source.seek(start)
        reader = self._arrow.ipc.open_stream(source)
        self.schema = reader.schema
        self._batches = [] if self._is_compressed else list(reader)  # memory-mapped, so they take no memory
        self.sizes = [self._messages[i].rows for i in self._positions]

    def count_bytes(self, column: str) -> Sequence[int]:
        """Return the sizes; in a compressed file, all columns and dictionaries count, as they are read together."""
        if not self._is_compressed:
            return [batch.column(column).nbytes for batch in self._batches]
        sizes, dictionaries = [], 0
        for message in self._messages:
            size = message.uncompressed_bytes or 0
            if message.is_batch:
                sizes.append(dictionaries + size)
            else:
                dictionaries += size
        return sizes

    def iterate(self, group: int, columns: Sequence[str]) -> Iterator[Any]:
        batch = self._read_batch(group).select(columns)
        batch.validate(full=True)  # offsets in an untrusted file may be wrong
        rows = choose_rows(batch.nbytes)
        for start in range(0, batch.num_rows, rows):
            yield batch.slice(start, rows)

    def _read_batch(self, group: int) -> Any:
        if not self._is_compressed:
            return self._batches[group]
        end = self._positions[group]
        needed = [*(i for i in self._dictionaries if i < end), end]
        messages = [self._schema_message, *(self._messages[i].message for i in needed)]
        content = b"".join(memoryview(message.serialize()) for message in messages)
        return self._arrow.ipc.open_stream(self._arrow.py_buffer(content)).read_next_batch()


def _check_numbers(numbers: Sequence[int]) -> None:
    if min(numbers, default=0) < 0:
        raise ValueError("it states a negative number of rows or bytes")


def count_group_bytes(metadata: Any, group: int, names: Collection[str]) -> int:
    """Return the uncompressed size, in bytes, of columns of a row group as stated in the metadata of a Parquet file."""
    row_group = metadata.row_group(group)
    columns = map(row_group.column, range(row_group.num_columns))
    return sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] in names)


def choose_rows(size: int, most: int = _MAX_BATCH_ROWS) -> int:
    """Return how many rows to read at a time, as every row may take all `size` bytes of its group."""
    return min(max(_MAX_BATCH_BYTES // max(size, 1), 1), most)


def _check_length(count: int, rows: int) -> None:
    if count != rows:
        raise ValueError(f"the file states {rows:,} of them, but there are {count:,}")


def _choose_column(schema: Any, requested: str, path: Path) -> str:
    """Return the image column: the requested one, else that of bytes and path, a usual name, or the only one."""
    types = require("pyarrow", _PURPOSE).types

    def is_binary(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    structs = [
        f.name for f in schema if types.is_struct(f.type) and (i := f.type.get_field_index("bytes")) >= 0
        and is_binary(f.type.field(i).type)
    ]  # fmt: skip
    binary = [f.name for f in schema if is_binary(f.type)]
    if requested in structs or requested in binary:
        return requested
    usual = [name for name in binary if name.lower() in _NAMES]
    for names in (structs, usual, binary):
        if len(names) == 1 and not requested:
            return str(names[0])
    if not structs and not binary:
        raise DataError(
            f"{path} has the columns {', '.join(schema.names)}, none of which holds the bytes of images: "
            "write a table of paths as CSV, or read it with pandas and Dataset.from_dataframe."
        )
    raise DataError(
        f"{path} has the columns {', '.join(schema.names)}; "
        + (f"{requested!r} holds no bytes of images" if requested else "which one holds the bytes of images is unclear")
        + ": name it with --column path=NAME."
    )


def _holds_labels(kind: Any) -> bool:
    types = require("pyarrow", _PURPOSE).types
    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind) or types.is_floating(kind)
        or types.is_boolean(kind)
    )  # fmt: skip


def _read_class_names(schema: Any) -> dict[str, Sequence[str]]:
    """Return the class names of each column that Hugging Face's `datasets` has stored in the schema."""
    try:
        features = jsonio.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        by_column = {column: feature.get("feature", feature) for column, feature in features.items()}
        return {
            column: list(map(str, feature["names"])) for column, feature in by_column.items()
            if isinstance(feature.get("names"), list)
        }  # fmt: skip
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _name_class(value: Any, names: Sequence[str] | None) -> Any:
    """Return the name of a class by its number; "" for -1, a missing label."""
    if names is None:
        return value
    if isinstance(value, list):
        return [_name_class(each, names) for each in value]
    if isinstance(value, int) and -1 <= value < len(names):
        return names[value] if value >= 0 else ""
    return value
