"""A folder of Parquet files with predictions: written part by part, resumable, by any number of processes.

    DEST.parquet/
      _predictions.json       the model, the classes, the columns, the rows of a part; complete: the number of images
      part-00000000.parquet   the predictions of the first images, in order
      part-00000001.parquet   the predictions of the next images, and so on

A part contains a fixed number of consecutive images, whichever process writes it, so the files are the same for any
number of shards. It is either complete or absent, and stores a hash of its paths: a process skips existing parts after
comparing their paths with its own list; the last process also compares the parts of the other shards. pyarrow, pandas,
DuckDB and Spark read the folder as one table, ignoring names that start with ``_`` or ``.``.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sightline import jsonio
from sightline.callbacks import Progress, no_progress
from sightline.data.containers import PREDICTIONS_FILE
from sightline.errors import DataError, OutputError, UsageError, check_installed, plural, require
from sightline.inference.inputs import InputItem
from sightline.inference.output_folder import OutputFolder, open_output_folder
from sightline.inference.prediction_rows import PURPOSE, SCHEMA, PredictionFormat, make_row, make_schema
from sightline.inference.results import Prediction

ROWS = 1024
"""The default number of images per part."""
SUFFIX = ".parquet"
MANIFEST = PREDICTIONS_FILE
_METADATA_KEY = b"sightline.predictions"
_MAX_MANIFEST = 1 << 26  # bytes: enough for 100,000 classes with long names
_PART = re.compile(r"part-(\d{8,})\.parquet")

Predict = Callable[[Iterator[InputItem]], Iterator[Prediction]]
"""Yields a prediction for each item, in order."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` processes that predict the same images; process `index`, from 0, writes every `count`-th part."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Shard:
        """Parse a shard such as ``"0/4"``; None means all images. Raises `UsageError`."""
        if text is None:
            return cls()
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
        if match is None or not int(match[1]) < int(match[2]):
            raise UsageError(f"A shard is I/N, from 0/N to N-1/N, e.g. 0/4 for the first of four, not {text!r}.")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def has(self, number: int) -> bool:
        """Whether this shard writes part `number`."""
        return number % self.count == self.index


@dataclass(frozen=True, slots=True)
class PredictionFiles:
    """The parts that a process has written, and those that were there before.

    Attributes:
        path: The folder or its address.
        images: The number of images of this shard.
        failed: How many of them could not be read; their rows contain the reason.
        total: The number of images of all shards.
        is_complete: Whether the parts of all shards exist.
    """

    path: Path | str
    images: int
    failed: int
    total: int
    is_complete: bool


@dataclass(frozen=True, slots=True)
class _Block:
    """A part according to this process's list: its number of images, the first path and a hash of all paths."""

    images: int
    first_path: str
    paths_sha256: str

    @classmethod
    def from_items(cls, items: Sequence[InputItem]) -> _Block:
        return cls(len(items), items[0].path, _hash_paths(item.path for item in items))


@dataclass(frozen=True, slots=True)
class _PartFacts:
    """The facts stored in a part."""

    images: int
    failed: int
    paths_sha256: str


def check_output(out: str | Path) -> None:
    """Raise `OutputError` if there is something other than a folder of predictions at `out`.

    Raises `MissingExtraError` without pyarrow, `UsageError` for an address that cannot be written to.
    """
    _list_output(out)


def _list_output(out: str | Path) -> tuple[OutputFolder, list[str]]:
    """Return the folder `out` and the names of its files; raises the same errors as `check_output`."""
    check_installed("pyarrow", purpose=PURPOSE)
    if not str(out).rstrip("/").lower().endswith(SUFFIX):
        raise OutputError(
            f"The predictions are a folder of Parquet files: give out a name that ends with {SUFFIX}, not {out}."
        )
    folder = open_output_folder(out)
    names = folder.list_names() or []
    if MANIFEST not in names and not all(map(_is_manifest, names)):
        raise OutputError(f"{folder.location} is a folder without {MANIFEST}: name a new folder with --out.")
    return folder, names


def _is_manifest(name: str) -> bool:
    """Return whether a file is the manifest, perhaps still being written by a process that started just before."""
    return name == MANIFEST or name.startswith(".part-")


class PredictionFolder:
    """The folder `out`; it is created, or continued if the same model wrote the same columns there.

    Raises `OutputError` for anything else.
    """

    def __init__(self, out: str | Path, form: PredictionFormat) -> None:
        self._folder, names = _list_output(out)
        self._form, self._sha256, self._has_written = form, form.sha256, False
        if MANIFEST not in names:
            self._write_manifest(None)
        self._compare_manifest()
        self._schema = make_schema(form).with_metadata({_METADATA_KEY: b""})

    def list_parts(self) -> set[int]:
        """Return the numbers of the parts that exist."""
        return {int(match[1]) for name in self._folder.list_names() or [] if (match := _PART.fullmatch(name))}

    def write(
        self,
        items: Iterable[InputItem],
        predict: Predict,
        shard: Shard,
        progress: Progress = no_progress,
        count: Callable[[], int | None] = lambda: None,
    ) -> PredictionFiles:
        """Write the missing parts of `shard` of all `items`, in order; `predict` yields a prediction for each item.

        Items are read, predicted and written as a stream: only one part and a few batches are in memory. `count`
        returns the number of all items, for the progress, once it is known.

        Raises `DataError` if a part has other paths than the items at its position, `OutputError` if the disk is full.
        The parts of other shards are compared once all exist.
        """
        totals = _Totals()
        waiting: deque[tuple[int, int]] = deque()  # the number and the size of each part that is being predicted
        others: dict[int, _Block] = {}  # the parts of other shards
        predictions = predict(self._select(items, shard, waiting, totals, others))
        total = _RemainingCount(self.list_parts(), shard, self._form.rows, count)
        rows: list[Prediction] = []
        try:
            for done, prediction in enumerate(predictions, start=1):
                rows.append(prediction)
                if len(rows) == waiting[0][1]:
                    number, _ = waiting.popleft()
                    totals.add(self._write_part(number, rows))
                    rows = []
                known = total.get()
                progress("predicting", done, 0 if known is None else max(known, done))
        finally:
            if isinstance(predictions, Generator):
                predictions.close()  # stop the computation now, not when the error has been handled
        is_complete = self._finish(totals.total, others)
        return PredictionFiles(self._folder.location, totals.images, totals.failed, totals.total, is_complete)

    def _select(
        self,
        items: Iterable[InputItem],
        shard: Shard,
        waiting: deque[tuple[int, int]],
        totals: _Totals,
        others: dict[int, _Block],
    ) -> Iterator[InputItem]:
        """Yield the items of the missing parts of `shard`; compare its other parts, and note those of other shards."""
        source, number = iter(items), 0
        while block := list(islice(source, self._form.rows)):
            totals.total += len(block)
            if shard.has(number):
                facts = self._read_part(number)
                if facts is None:
                    waiting.append((number, len(block)))
                    yield from block
                else:
                    self._check_paths(number, _Block.from_items(block), facts)
                    totals.add(facts)
            else:
                others[number] = _Block.from_items(block)
            number += 1

    def _check_paths(self, number: int, block: _Block, facts: _PartFacts) -> None:
        if (facts.images, facts.paths_sha256) != (block.images, block.paths_sha256):
            first = number * self._form.rows
            raise DataError(
                f"Images {first + 1:,} to {first + block.images:,}, from {block.first_path} on, are not those that "
                f"{self._locate(number)} holds: the list of images has changed since. Name a new folder with --out."
            )

    def _locate(self, number: int) -> str:
        return self._folder.locate(_name_part(number))

    def _write_part(self, number: int, predictions: Sequence[Prediction]) -> _PartFacts:
        pyarrow, parquet = require("pyarrow", PURPOSE), require("pyarrow.parquet", PURPOSE)
        facts = _PartFacts(
            len(predictions), sum(p.error is not None for p in predictions), _hash_paths(p.path for p in predictions)
        )
        if not self._has_written:  # another job may have started at the same moment
            if self._compare_manifest().get("status") == "complete":  # the list has grown since
                self._write_manifest(None)
            self._has_written = True
        values = {"schema": SCHEMA, "format": self._sha256, **jsonio.fields_to_dict(facts)}
        schema = self._schema.with_metadata({_METADATA_KEY: jsonio.dumps(values)})
        rows = [make_row(prediction, self._form) for prediction in predictions]
        stream = pyarrow.BufferOutputStream()
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), stream)
        self._folder.write(_name_part(number), stream.getvalue().to_pybytes())
        return facts

    def _read_part(self, number: int) -> _PartFacts | None:
        """Return the facts of a part; None if it is missing or damaged, as after a power failure.

        Raises `OutputError` if the part belongs to another job, or cannot be read.
        """
        pyarrow, parquet = require("pyarrow", PURPOSE), require("pyarrow.parquet", PURPOSE)
        try:
            with self._folder.open(_name_part(number)) as file:
                metadata = parquet.read_metadata(file)
            values = jsonio.loads((metadata.schema.to_arrow_schema().metadata or {})[_METADATA_KEY])
            facts = _PartFacts(int(values["images"]), int(values["failed"]), str(values["paths_sha256"]))
            is_ours = values["format"] == self._sha256
        except OSError as error:
            if isinstance(error, FileNotFoundError) or error.errno is None:  # pyarrow raises it for damaged files
                return None
            raise OutputError(
                f"{self._locate(number)} cannot be read: {error.strerror}. Run the same command again to go on."
            ) from error
        except (ValueError, KeyError, TypeError, pyarrow.ArrowException):
            return None
        if not is_ours:
            raise OutputError(
                f"{self._locate(number)} was written with another model or other options: name a new folder with --out."
            )
        return facts if metadata.num_rows == facts.images else None

    def _finish(self, total: int, others: Mapping[int, _Block]) -> bool:
        """Complete the manifest if the parts of all `total` images exist; return whether they do.

        Raises `DataError` if one of the `others` has different paths: its shard had another list of images.
        """
        expected = set(range(-(-total // self._form.rows)))
        numbers = self.list_parts()
        if extra := numbers - expected:
            raise DataError(
                f"{self._locate(min(extra))} is beyond the {plural(total, 'image')}: the list of images has become "
                "shorter since it was written. Name a new folder with --out."
            )
        if numbers != expected:
            return False
        for number, block in others.items():
            facts = self._read_part(number)
            if facts is None:  # damaged: its shard writes it again
                return False
            self._check_paths(number, block, facts)
        self._write_manifest(total)
        return True

    def _write_manifest(self, images: int | None) -> None:
        status = "writing" if images is None else "complete"
        values = {"kind": "sightline.predictions", **self._form.to_dict(), "images": images, "status": status}
        self._folder.write(MANIFEST, jsonio.encode_text(jsonio.dumps(values, indent=2) + "\n"))

    def _compare_manifest(self) -> Mapping[str, Any]:
        """Return the manifest; raises `OutputError` if the folder contains predictions in another format."""
        values = _read_manifest(self._folder)
        for name, value in self._form.to_dict().items():
            if values.get(name) != jsonio.loads(jsonio.dumps(value)):
                difference = "" if name in {"model", "classes"} else f" ({values.get(name)}, not {value})"
                raise OutputError(
                    f"{self._folder.location} was written with another setting of {name}{difference}: give the same "
                    "options, or name a new folder with --out."
                )
        return values


class _Totals:
    """The total number of images, and the numbers of images and failures in the parts of a shard."""

    def __init__(self) -> None:
        self.total = self.images = self.failed = 0

    def add(self, facts: _PartFacts) -> None:
        self.images += facts.images
        self.failed += facts.failed


class _RemainingCount:
    """The number of images that a shard has to predict, available once `count` returns the total."""

    def __init__(self, parts: set[int], shard: Shard, rows: int, count: Callable[[], int | None]) -> None:
        self._parts, self._shard, self._rows, self._count = parts, shard, rows, count
        self._remaining: int | None = None

    def get(self) -> int | None:
        if self._remaining is None and (total := self._count()) is not None:
            numbers = range(self._shard.index, -(-total // self._rows), self._shard.count)
            self._remaining = sum(min(self._rows, total - n * self._rows) for n in numbers if n not in self._parts)
        return self._remaining


def _name_part(number: int) -> str:
    return f"part-{number:08}.parquet"


def _read_manifest(folder: OutputFolder) -> Mapping[str, Any]:
    where = folder.locate(MANIFEST)
    try:
        with folder.open(MANIFEST) as file:
            values = jsonio.loads(file.read(_MAX_MANIFEST))
    except (OSError, ValueError) as error:
        raise OutputError(f"{where} cannot be read: {error}. Name a new folder with --out.") from error
    if not isinstance(values, dict) or values.get("kind") != "sightline.predictions":
        raise OutputError(f"{where} was not written by predict: name a new folder with --out.")
    return values


def _hash_paths(paths: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()
