"""WebDataset: a tar where the files of a sample share their name up to the first dot: ``17.jpg``, ``17.cls``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from sightline import jsonio
from sightline.data.archives import TarStore
from sightline.data.sources.filenames import IMAGE_SUFFIXES, is_hidden
from sightline.data.sources.folder import is_flat, list_visible
from sightline.data.storage import read_file
from sightline.errors import DataError

IMAGE_COLUMN = "image"
_CLASS, _FIELDS = "cls", "json"
_MAX_CLASS_BYTES = 4096


def list_samples(store: TarStore) -> list[Mapping[str, Any]]:
    """Return a row for each sample: the key of its image, its label from ``.cls``, and the fields of its ``.json``.

    A tar without ``.cls`` files has none, unless it has ``.json`` files and no class folders. The format is from
    Aizman et al., 2019 (arXiv:2001.01858). Raises `DataError` for a file that cannot be read.
    """
    samples: dict[str, dict[str, str]] = {}
    kinds = set()
    for key in store.keys():  # noqa: SIM118  # not a dict
        folder, name = PurePosixPath(key).parent, PurePosixPath(key).name
        stem, _, kind = name.partition(".")
        if kind and not is_hidden(key):
            kind = IMAGE_COLUMN if f".{kind.lower()}" in IMAGE_SUFFIXES else kind.lower()
            kinds.add(kind)
            samples.setdefault(str(folder / stem), {}).setdefault(kind, key)
    if IMAGE_COLUMN not in kinds or not (_CLASS in kinds or (_FIELDS in kinds and is_flat(list_visible(store)))):
        return []
    return [_make_row(store, files) for files in samples.values() if IMAGE_COLUMN in files]


def _make_row(store: TarStore, files: Mapping[str, str]) -> Mapping[str, Any]:
    row: dict[str, Any] = {}
    if key := files.get(_FIELDS):
        try:
            fields = jsonio.loads(read_file(store, key))
        except ValueError as error:
            raise DataError(f"{store.name}/{key} is not JSON: {error}.") from error
        if not isinstance(fields, dict):
            raise DataError(f"{store.name}/{key}: expected a JSON object with the fields of a sample.")
        row |= {name: value for name, value in fields.items() if not isinstance(value, dict)}
    if key := files.get(_CLASS):
        content = read_file(store, key)
        if len(content) > _MAX_CLASS_BYTES:
            raise DataError(f"{store.name}/{key} has {len(content):,} bytes, but expected the name of a class.")
        row["label"] = content.decode("utf-8", "replace").strip()
    return row | {IMAGE_COLUMN: files[IMAGE_COLUMN]}
