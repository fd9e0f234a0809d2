"""Exact nearest images by cosine similarity: every row is compared, in blocks that bound memory."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from sightline.errors import DataError, plural
from sightline.inference.embeddings import ROWS, Embeddings, split_rows

_POSITION = re.compile(r"\[\d+\]")  # replaces the path of an image that has none

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class SimilarImage:
    """An image that is near another one.

    Attributes:
        image: The path of the query image.
        rank: 1 for the nearest image, 2 for the next, and so on.
        path: The path of the near image; None if `image` cannot be read.
        similarity: The cosine similarity of their features, from -1 to 1; 1 for the same features.
        error: Why `image` has no near images; None if it has any.
    """

    image: str
    rank: int = 0
    path: str | None = None
    similarity: float | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; for an error, only its reason."""
        if self.error is not None:
            return {"image": self.image, "error": self.error}
        return {"image": self.image, "rank": self.rank, "path": self.path, "similarity": self.similarity}


def normalize_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return float32 [N, D] with rows of length 1; rows of zeros stay, with similarity 0 to any other."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))[:, None]  # without a float64 copy
    normalized = np.empty_like(vectors)
    np.divide(vectors, np.where(lengths > 0, lengths, 1), out=normalized, casting="same_kind")
    return normalized


class NearestRows(Generic[Key]):
    """The keys of the `count` rows nearest to each of Q queries, among all rows passed to `add`.

    Among rows at the same distance, the first ones win.
    """

    def __init__(self, queries: NDArray[np.float32], count: int) -> None:
        """`queries` is float32 [Q, D]."""
        self._queries, self._count = normalize_rows(queries), count
        self.similarities = [np.zeros(0, np.float32) for _ in queries]
        self.keys: list[list[Key]] = [[] for _ in queries]

    def add(self, rows: NDArray[np.float32], keys: Sequence[Key], skip: Sequence[Sequence[int]] | None = None) -> None:
        """Compare rows float32 [n, D] of length 1; `skip` lists the positions of rows to leave out for each query."""
        for start in range(0, len(self._queries), ROWS):  # with as many `rows`: 64 MB of similarities
            similarities = self._queries[start : start + ROWS] @ rows.T
            for i, row in enumerate(similarities, start):
                if skip is not None:
                    row[list(skip[i])] = -np.inf
                is_full = len(self.keys[i]) == self._count
                positions = np.flatnonzero(row > (self.similarities[i][-1] if is_full else -np.inf))
                if len(positions):
                    self._merge(i, row[positions], [keys[j] for j in positions.tolist()])

    def _merge(self, query: int, similarities: NDArray[np.float32], keys: Sequence[Key]) -> None:
        values = np.concatenate([self.similarities[query], similarities])
        all_keys = [*self.keys[query], *keys]
        order = np.argsort(-values, kind="stable")[: self._count]
        self.similarities[query], self.keys[query] = values[order], [all_keys[i] for i in order]


def _identify_file(path: str) -> str | None:
    """Return the absolute path; None for an image that is not a file, as ``[0]`` differs between calls."""
    if _POSITION.fullmatch(path):
        return None
    return os.path.abspath(path)  # noqa: PTH100  # a million times as fast as resolving


def find_similar(
    queries: Embeddings, batches: Iterable[Embeddings], count: int, on_message: Callable[[str], None]
) -> list[SimilarImage]:
    """Return the `count` images of `batches` nearest to each image of `queries`, nearest first.

    An image is not compared with itself, i.e. with the file of the same path. `on_message` receives the number of
    images of `batches` without an embedding; raises `DataError` if none has one.
    """
    valid = queries.select(queries.is_valid)
    own_files = [_identify_file(path) for path in valid.paths]
    nearest: NearestRows[str] = NearestRows(valid.vectors, count)
    total = failed = 0
    reason = ""
    for batch in chain.from_iterable(map(split_rows, batches)):
        rows = batch.select(batch.is_valid)
        total, failed = total + len(rows), failed + len(batch) - len(rows)
        reason = reason or next((f"{p}: {e}" for p, e in zip(batch.paths, batch.errors, strict=True) if e), "")
        positions: dict[str, list[int]] = {}
        for position, file in enumerate(map(_identify_file, rows.paths)):
            if file is not None:
                positions.setdefault(file, []).append(position)
        skip: list[list[int]] = [[] if file is None else positions.get(file, []) for file in own_files]
        nearest.add(normalize_rows(rows.vectors), rows.paths, skip)
    if not total and not failed:
        raise DataError("There are no images to compare with: give some.")
    if not total and failed == 1:
        raise DataError(f"The image to compare with cannot be read: {reason}.")
    if not total:
        raise DataError(f"None of the {plural(failed, 'image')} to compare with can be read, e.g. {reason}.")
    if failed:
        on_message(f"{failed:,} of {plural(total + failed, 'image')} to compare with cannot be read, e.g. {reason}")
    ranking = iter(zip(nearest.keys, nearest.similarities, strict=True))
    results: list[SimilarImage] = []
    for path, error in zip(queries.paths, queries.errors, strict=True):
        if error is not None:
            results.append(SimilarImage(path, error=error))
            continue
        keys, similarities = next(ranking)
        ranked = enumerate(zip(keys, np.clip(similarities, -1, 1).tolist(), strict=True), 1)
        results += [SimilarImage(path, rank, key, similarity) for rank, (key, similarity) in ranked]
    return results
