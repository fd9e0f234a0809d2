"""Embeddings: the features of images as rows of numbers, with the model that computed them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import jsonio
from sightline.errors import DataError, UsageError, require
from sightline.inference.manifest import Manifest
from sightline.preprocessing import PreprocessingSpec

ROWS = 4096  # number of rows read, written or compared at once: 20 MB with 1,280 features
ADDED_CLASS = "add-class"
"""The lineage step of a bundle to which a class was added; it changes the last layer but no feature."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Embeddings:
    """The embeddings of N images, in order.

    Attributes:
        vectors: float32 [N, D]: the features of each image, the input of the last layer of the network. The row of an
            image without features is NaN.
        paths: The path of each image, or its position, as in ``"[0]"``, if it came without one.
        labels: The label of each image; None if it is not known.
        errors: Why an image has no embedding; None if it has one.
        model: The id of the model that computed them: its name and a hash of its weights, precision and preprocessing.
    """

    vectors: NDArray[np.float32]
    paths: tuple[str, ...]
    labels: tuple[str | None, ...]
    errors: tuple[str | None, ...]
    model: str

    def __len__(self) -> int:
        return len(self.paths)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:  # noqa: FBT001  # as NumPy calls it
        """Return `vectors`, for NumPy and scikit-learn."""
        return np.array(self.vectors, dtype, copy=copy)

    @property
    def shape(self) -> tuple[int, int]:
        """The number of images and of features."""
        return self.vectors.shape[0], self.vectors.shape[1]

    def __repr__(self) -> str:
        failed = sum(error is not None for error in self.errors)
        rest = f", {failed} without one" if failed else ""
        return f"Embeddings({len(self)} x {self.vectors.shape[1]} of {self.model.partition('@')[0]}{rest})"

    @property
    def texts(self) -> tuple[tuple[str | None, ...], ...]:
        """The paths, the labels and the errors."""
        return self.paths, self.labels, self.errors

    @property
    def is_valid(self) -> NDArray[np.bool_]:
        """Whether each image has an embedding, bool [N]."""
        return np.array([error is None for error in self.errors], bool)

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with path, label and error columns (if there are any), and one for each feature.

        Raises `MissingExtraError`, which says what to install, if pandas is missing.
        """
        pandas = require("pandas", "A DataFrame")
        texts = zip(("path", "label", "error"), self.texts, strict=True)
        columns = {name: values for name, values in texts if name == "path" or any(values)}
        features = pandas.DataFrame(self.vectors, columns=name_features(self.vectors.shape[1]))
        return pandas.concat([pandas.DataFrame(columns), features], axis=1)

    def save(self, path: str | Path, *, raw_csv: bool = False) -> Path:
        """Write a ``.parquet``, ``.npy`` or ``.csv`` file, as `sightline embed` does, and return its path.

        In CSV, text that a spreadsheet would read as a formula gets an apostrophe, unless `raw_csv`.

        Raises `UsageError` for another suffix or no path, `OutputError` if it cannot be written, and
        `MissingExtraError` for Parquet without pyarrow.
        """
        from sightline.inference import embedding_files

        if not isinstance(path, str | os.PathLike):
            raise UsageError(f"path must be a file that ends with .parquet, .npy or .csv, not {path!r}.")
        path = embedding_files.check_output(path)
        embedding_files.write(path, [self], raw_csv=raw_csv)
        return path

    def select(self, positions: NDArray[Any]) -> Embeddings:
        """Return the rows at `positions`, or where a mask bool [N] is true."""
        rows = np.arange(len(self))[positions].tolist()
        return Embeddings(
            self.vectors[rows], tuple(self.paths[i] for i in rows), tuple(self.labels[i] for i in rows),
            tuple(self.errors[i] for i in rows), self.model,
        )  # fmt: skip


def name_features(count: int) -> list[str]:
    """Return the names of the feature columns of a table."""
    return [f"feature_{number}" for number in range(count)]


def join_embeddings(batches: Sequence[Embeddings], size: int, model: str) -> Embeddings:
    """Return all rows of `batches` as one value; for no batches, 0 rows of `size` features of `model`."""
    if not batches:
        return Embeddings(np.zeros((0, size), np.float32), (), (), (), model)
    vectors = np.concatenate([batch.vectors for batch in batches])
    paths, labels, errors = (
        tuple(value for batch in batches for value in getattr(batch, name)) for name in ("paths", "labels", "errors")
    )
    return Embeddings(vectors, paths, labels, errors, model)


def split_rows(embeddings: Embeddings, rows: int = ROWS) -> Iterator[Embeddings]:
    """Yield the rows of one value in parts of at most `rows`; a value without rows is yielded as it is."""
    if len(embeddings) <= rows:
        yield embeddings
        return
    for start in range(0, len(embeddings), rows):
        yield embeddings.select(np.arange(start, min(start + rows, len(embeddings))))


def regroup(batches: Iterable[Embeddings], rows: int = ROWS) -> Iterator[Embeddings]:
    """Yield the rows of all batches in blocks of about `rows`: large ones are split, and small ones joined."""
    waiting: list[Embeddings] = []
    for batch in batches:
        for block in split_rows(batch, rows):
            waiting.append(block)
            if sum(map(len, waiting)) >= rows:
                yield waiting[0] if len(waiting) == 1 else join_embeddings(waiting, 0, block.model)
                waiting = []
    if waiting:
        yield join_embeddings(waiting, 0, waiting[0].model)


def identify_model(name: str, weights_sha256: str, precision: str, preprocess: PreprocessingSpec) -> str:
    """Return the id of a model in embedding files: models with the same id compute the same features for an image."""
    values = [weights_sha256, precision, preprocess.to_dict()]
    return f"{name}@{hashlib.sha256(jsonio.dumps(values, sort_keys=True).encode()).hexdigest()}"


def identify_manifest(manifest: Manifest) -> str:
    """Return the model id of a bundle or an export; the id of the original model if classes were added to it."""
    return identify_model(manifest.model, find_feature_weights(manifest), manifest.precision, manifest.preprocess)


def find_feature_weights(manifest: Manifest) -> str:
    """Return the hash of the weights that compute the features: the weights before any classes were added."""
    weights = manifest.weights_sha256 or manifest.graph_sha256
    for step in reversed(manifest.lineage):
        original: Mapping[str, Any] = step
        if original.get("step") != ADDED_CLASS or not isinstance(original.get("weights_sha256"), str):
            break
        weights = original["weights_sha256"]
    return weights


def check_same_model(source: str, stored: str, model: str) -> None:
    """Raise `DataError` unless the embeddings of `source` were computed by `model`."""
    if stored != model:
        raise DataError(
            f"{source} holds embeddings of another model ({shorten_id(stored)}, not {shorten_id(model)}), and the "
            "features of two models cannot be compared: write it again with `sightline embed` and this model."
        )


def shorten_id(model: str) -> str:
    """Return the id of a model as shown in messages.

    >>> shorten_id("vgg16@" + 64 * "a")
    'vgg16 aaaaaaaaaaaa'
    """
    name, _, digest = model.rpartition("@")
    return f"{name} {digest[:12]}"
