"""Embedding files: Parquet, NumPy and CSV, written and read in blocks, so that memory stays bounded.

    FILE.parquet   path, label, error, embedding (a list of float32); the model is in the metadata of the schema
    FILE.npy       float32 [N, D]; FILE.npy.jsonl has the model on its first line, then one object per row
    FILE.csv       path, label, error, model, feature_0, feature_1, ...

Each row is an image, in order. An image without an embedding has an error, and NaN (in CSV: nothing) as its features.
In CSV, ``;`` is the label of an image with none of several classes, because an empty cell is an unknown label.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sightline import _io, _packed, jsonio
from sightline.data.image_tables import choose_rows, count_group_bytes
from sightline.data.targets import SEPARATOR
from sightline.errors import (
    DataError,
    ModelError,
    OutputError,
    UsageError,
    check_installed,
    first_line,
    plural,
    require,
)
from sightline.escaping import CsvWriter, escape_formula, escape_surrogates
from sightline.inference.embeddings import ROWS, Embeddings, name_features, regroup

SUFFIXES = (".parquet", ".npy", ".csv")
TEXTS = ("path", "label", "error")
SCHEMA = 1
_HEADER = (*TEXTS, "model")  # the first columns of every CSV file
_METADATA_KEY = b"sightline.embeddings"
_NO_CLASSES = SEPARATOR  # represents the label "" in CSV
_MAX_LINE = 1 << 24  # bytes per line of CSV

Batches = Generator[Embeddings, None, None]


def check_output(path: str | Path) -> Path:
    """Return the path of an embedding file to write; raises `OutputError` if another kind of file exists there.

    Raises `UsageError` for an address or an unknown suffix, `MissingExtraError` if the format's package is missing.
    """
    path = _io.output_path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path} should end with .parquet, .npy or .csv, the formats of embeddings.")
    if path.suffix.lower() == ".parquet":
        check_installed("pyarrow", purpose="Writing Parquet")
    if path.is_dir():
        raise OutputError(f"{path} is a folder: name a file in it with --out.")
    if path.exists() and not is_embeddings_file(path):
        raise OutputError(f"{path} exists and is not a file of embeddings: name another file with --out.")
    _io.check_writable(path)
    return path


def is_embeddings_file(path: Path) -> bool:
    """Return whether a file looks like an embedding file, by its suffix and its first bytes."""
    starts = {
        ".parquet": (path, b"PAR1"),
        ".npy": (_rows_path(path), b'{"schema": '),
        ".csv": (path, ",".join(_HEADER).encode() + b",feature_0"),
    }
    if path.suffix.lower() not in starts:
        return False
    file_path, start = starts[path.suffix.lower()]
    try:
        with _io.open_regular(file_path) as file:
            return file.read(len(start)) == start
    except OSError:
        return False


def has_embeddings(path: Path) -> bool:
    """Return whether to open an input path as embeddings: even a damaged file, but not other tables."""
    return path.is_file() and (path.suffix.lower() in {".parquet", ".npy"} or is_embeddings_file(path))


def write(path: Path, batches: Iterable[Embeddings], *, raw_csv: bool = False) -> tuple[int, int]:
    """Write at least one batch to a file, atomically; return the numbers of images and of images without an embedding.

    In CSV, text that a spreadsheet would read as a formula gets an apostrophe, unless `raw_csv`; reading the file
    restores the text in both cases. Raises the same errors as `check_output`.
    """
    path = check_output(path)
    counts = [0, 0]

    def count(batch: Embeddings) -> Embeddings:
        counts[0] += len(batch)
        counts[1] += sum(error is not None for error in batch.errors)
        return batch

    write_csv: Callable[[Path, Iterator[Embeddings]], None] = partial(_write_csv, raw=raw_csv)
    writer = {".parquet": _write_parquet, ".npy": _write_npy, ".csv": write_csv}[path.suffix.lower()]
    writer(path, map(count, regroup(batches, ROWS)))
    return counts[0], counts[1]


def _write_parquet(path: Path, batches: Iterator[Embeddings]) -> None:
    pyarrow, parquet = require("pyarrow", "Writing Parquet"), require("pyarrow.parquet", "Writing Parquet")

    def fill(file: IO[bytes]) -> None:
        first = next(batches)
        size, text = first.vectors.shape[1], pyarrow.string()
        metadata = {_METADATA_KEY: jsonio.dumps({"schema": SCHEMA, "model": first.model})}
        schema = _make_parquet_schema(size).with_metadata(metadata)
        with parquet.ParquetWriter(file, schema) as writer:
            for batch in chain([first], batches):
                values = pyarrow.array(np.ascontiguousarray(batch.vectors).reshape(-1))
                columns = [
                    pyarrow.array([None if cell is None else escape_surrogates(cell) for cell in texts], text)
                    for texts in batch.texts
                ]
                columns.append(pyarrow.FixedSizeListArray.from_arrays(values, size))
                writer.write_batch(pyarrow.record_batch(columns, schema=schema))

    _io.write_atomic(path, fill)


def _make_parquet_schema(size: int) -> Any:
    pyarrow = require("pyarrow", "The format Parquet")
    fields = [(name, pyarrow.string()) for name in TEXTS]
    return pyarrow.schema([*fields, ("embedding", pyarrow.list_(pyarrow.float32(), size))])


def _rows_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.jsonl")


def _write_npy(path: Path, batches: Iterator[Embeddings]) -> None:
    """Write the vectors and their rows; old rows are set aside meanwhile, so that vectors never get the wrong rows.

    They are put back if the new vectors do not replace the old ones.
    """
    rows_path = _rows_path(path)
    aside = _io.temporary_path(rows_path)

    def fill_rows(rows: IO[bytes]) -> None:
        def fill_vectors(vectors: IO[bytes]) -> None:
            _write_arrays(batches, vectors, rows)
            vectors.flush()
            os.fsync(vectors.fileno())  # a full disk is noticed here, before anything has changed
            with suppress(FileNotFoundError):
                rows_path.replace(aside)

        old = _identify(path)
        try:
            _io.write_atomic(path, fill_vectors)
        except BaseException:  # including Ctrl-C
            if _identify(path) == old:
                with suppress(FileNotFoundError):
                    aside.replace(rows_path)
            raise

    try:
        _io.write_atomic(rows_path, fill_rows)
    finally:
        _io.remove(aside)


def _identify(path: Path) -> tuple[int, int] | None:
    """Return values that distinguish a file from its replacement; None if there is no file."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _write_arrays(batches: Iterator[Embeddings], vectors: IO[bytes], rows: IO[bytes]) -> None:
    total = size = 0
    for batch in batches:
        if not vectors.tell():
            size = batch.vectors.shape[1]
            _write_npy_header(vectors, total, size)
            rows.write(jsonio.encode_text(jsonio.dumps({"schema": SCHEMA, "model": batch.model}) + "\n"))
        vectors.write(np.ascontiguousarray(batch.vectors).data)
        total += len(batch)
        rows.write(jsonio.dump_lines([dict(zip(TEXTS, row, strict=True)) for row in zip(*batch.texts, strict=True)]))
    vectors.seek(0)
    _write_npy_header(vectors, total, size)
    rows.flush()  # vectors are never on disk before their rows
    os.fsync(rows.fileno())


def _write_npy_header(file: IO[bytes], count: int, size: int) -> None:
    """Write the header; its length is the same for any number of rows, as NumPy leaves room for the first axis."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (count, size)}
    np.lib.format.write_array_header_1_0(file, header)


def _write_csv(path: Path, batches: Iterator[Embeddings], *, raw: bool) -> None:
    def fill(file: IO[bytes]) -> None:
        with _io.as_text(file) as text:
            writer = CsvWriter(text)
            for number, batch in enumerate(batches):
                if not number:
                    writer.write_row([*_HEADER, *name_features(batch.vectors.shape[1])])
                for i in range(len(batch)):
                    error = batch.errors[i]
                    label = _NO_CLASSES if batch.labels[i] == "" else batch.labels[i] or ""
                    texts = [_escape(text or "", raw=raw) for text in (batch.paths[i], label, error, batch.model)]
                    cells = [f"{value:.9g}" for value in batch.vectors[i].tolist()]
                    writer.write_row([*texts, *(cells if error is None else [""] * len(cells))])

    _io.write_atomic(path, fill)


@dataclass(frozen=True, slots=True)
class EmbeddingsFile:
    """An open embedding file: the id of its model, and a function that reads the rows, each time from the start."""

    path: Path
    model: str
    iterate: Callable[[], Batches]


def open_file(path: Path) -> EmbeddingsFile:
    """Open an embedding file; raises `DataError` if it is another kind of file or damaged."""
    if not is_embeddings_file(path):
        missing = _rows_path(path)
        lost = f", as there is no {missing} with its paths" if path.suffix == ".npy" and not missing.exists() else ""
        raise DataError(
            f"{path} is not a file of embeddings{lost}: `sightline embed MODEL IMAGES --out FILE` writes one."
        )
    opener = {".parquet": _open_parquet, ".npy": _open_npy, ".csv": _open_csv}[path.suffix.lower()]
    with _explain_errors(path):
        return opener(path)


@contextmanager
def _explain_errors(path: Path) -> Iterator[None]:
    """Turn the readers' errors about a damaged file into a `DataError` that names the file."""
    try:
        yield
    except (OSError, ValueError, NotImplementedError, csv.Error, ModelError) as error:
        reason = (getattr(error, "strerror", None) or first_line(error)).rstrip(".")
        raise DataError(f"{path} cannot be read: {reason}. Write it again with `sightline embed`.") from error


def _guard(path: Path, read: Callable[[], Batches]) -> Callable[[], Batches]:
    """Return `read` with its rows checked and its errors explained; errors of its caller stay unchanged."""

    def iterate() -> Batches:
        with closing(read()) as batches:
            while True:
                with _explain_errors(path):
                    batch = next(batches, None)
                    if batch is None:
                        return
                    _check_rows(batch)
                yield batch

    return iterate


def _check_rows(batch: Embeddings) -> None:
    """Raise `ValueError` for rows that Sightline never writes."""
    for name, texts in zip(TEXTS, batch.texts, strict=True):
        for text in texts:
            if not isinstance(text, str) and (name == "path" or text is not None):
                raise ValueError(f"it holds {text!r} instead of a {name}")
    if not np.isfinite(batch.vectors).all(where=batch.is_valid[:, None]):
        raise ValueError("it holds NaN or infinity")


def _parse_model(text: str | bytes) -> str:
    """Return the id of the model; raises `ValueError` for another schema."""
    values = jsonio.loads(text)
    if not isinstance(values, dict) or values.get("schema") != SCHEMA or not isinstance(values.get("model"), str):
        raise ValueError(f"it does not state its model, or has another schema than {SCHEMA}")
    return str(values["model"])


def _open_parquet(path: Path) -> EmbeddingsFile:
    parquet = require("pyarrow.parquet", "Reading Parquet")

    def iterate() -> Batches:
        with _io.open_regular(path) as source, parquet.ParquetFile(source) as file:
            sizes = (count_group_bytes(file.metadata, group, TEXTS) for group in range(file.num_row_groups))
            for batch in file.iter_batches(choose_rows(max(sizes, default=0), ROWS)):  # rows may share one long text
                rows = batch.column("embedding")
                vectors = rows.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), size)
                paths, labels, errors = (tuple(batch.column(name).to_pylist()) for name in TEXTS)
                yield Embeddings(vectors.astype(np.float32, copy=False), paths, labels, errors, model)

    with _io.open_regular(path) as source, parquet.ParquetFile(source) as file:
        schema = file.schema_arrow
        model = _parse_model((schema.metadata or {}).get(_METADATA_KEY, b"{}"))
    size = getattr(schema.field("embedding").type, "list_size", 0) if "embedding" in schema.names else 0
    if schema.remove_metadata() != _make_parquet_schema(size):
        raise ValueError("its columns are not path, label, error and embedding, or have other types")
    return EmbeddingsFile(path, model, _guard(path, iterate))


def _open_npy(path: Path) -> EmbeddingsFile:
    with _io.open_regular(path) as file:
        vectors = _packed.map_array(file)
    if vectors.dtype != np.float32 or vectors.ndim != 2:
        raise ValueError(f"it is {vectors.dtype} {list(vectors.shape)}, expected float32 [N, D]")

    def iterate() -> Batches:
        with _io.open_regular(_rows_path(path)) as file:
            lines = _iter_lines(file)
            next(lines, None)
            for start in range(0, len(vectors), ROWS):
                rows = [_parse_texts(line) for line in islice(lines, ROWS)]
                paths, labels, errors = (tuple(row[name] for row in rows) for name in TEXTS)
                batch = np.array(vectors[start : start + ROWS])
                if len(batch) != len(rows):
                    break
                yield Embeddings(batch, paths, labels, errors, model)
            else:
                if next(lines, None) is None:
                    return
        raise ValueError(f"it has {plural(len(vectors), 'row')}, but {_rows_path(path).name} has another number")

    with _io.open_regular(_rows_path(path)) as file:
        model = _parse_model(next(_iter_lines(file)))
    return EmbeddingsFile(path, model, _guard(path, iterate))


def _parse_texts(line: bytes) -> dict[str, Any]:
    """Return the text fields of a row by name."""
    row = jsonio.loads(line)
    if not isinstance(row, dict) or not row.keys() >= {*TEXTS}:
        raise ValueError("a row lacks its path, label or error")
    return row


def _iter_lines(file: IO[bytes]) -> Iterator[bytes]:
    while line := file.readline(_MAX_LINE):
        yield line


def _open_csv(path: Path) -> EmbeddingsFile:
    def iterate() -> Batches:
        with _io.open_regular(path) as file:
            lines = csv.reader(line.decode() for line in _iter_lines(file))
            size = len(next(lines, [])) - len(_HEADER)
            while rows := [_parse_row(cells, size) for cells in islice(lines, ROWS)]:
                paths, labels, errors, models, vectors = zip(*rows, strict=True)
                if {*models} != {model}:
                    raise ValueError("it holds embeddings of several models")
                yield Embeddings(np.stack(vectors), paths, labels, errors, model)

    with _io.open_regular(path) as file:
        rows = csv.reader(line.decode() for line in _iter_lines(file))
        next(rows)
        _, _, _, model, *_ = map(_unescape, next(rows, [""] * len(_HEADER)))
    return EmbeddingsFile(path, model, _guard(path, iterate))


def _parse_row(cells: list[str], size: int) -> tuple[str, str | None, str | None, str, NDArray[np.float32]]:
    path, label, error, model, *values = cells
    if len(values) != size:
        raise ValueError(f"the row of {path!r} has {plural(len(values), 'feature')}, not {size}")
    vector = np.full(size, np.nan, np.float32) if error else np.array(values, np.float32)
    known_label = "" if label == _NO_CLASSES else _unescape(label) or None
    return _unescape(path), known_label, _unescape(error) or None, _unescape(model), vector


def _escape(text: str, *, raw: bool) -> str:
    """Return the text with an apostrophe in front if it is a formula, with or without apostrophes before it.

    If `raw`, a formula without apostrophes stays unchanged. `_unescape` restores the text in both cases.
    """
    needs_more = _is_formula(text.lstrip("'")) and not (raw and _is_formula(text))
    return f"'{text}" if needs_more else text


def _unescape(text: str) -> str:
    """Return the original text from the result of `_escape`."""
    return text[1:] if text.startswith("'") and _is_formula(text.lstrip("'")) else text


def _is_formula(text: str) -> bool:
    return escape_formula(text) != text
