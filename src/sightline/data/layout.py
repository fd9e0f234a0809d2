"""From the paths in a folder or archive to classes and parts, and from a manifest or idx files to the same."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import struct
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.data.stores import ArrayStore, FileStore, FolderStore, Store
from sightline.errors import DataError
from sightline.records import Part, Reject

PART_NAMES: Mapping[str, Part] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}

PICTURE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".avif", ".heic", ".heif", ".tga", ".ico",
})  # fmt: skip
"""A file named so must be a picture: one that cannot be read is a reject. Other names are tried, then passed over."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or array that should be a picture, not looked into yet; `named`: the source itself says that it is."""

    store: Store
    key: str
    path: str
    label: str
    part: Part | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    named: bool = False


@dataclass(frozen=True, slots=True)
class ClassFolder:
    """A folder that names a class, whether it holds pictures or not."""

    path: str
    label: str
    part: Part | None


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source lists: entries to look into, files that lie in no class, and those passed over.

    `classes` are its class folders, one for each part that has it; `unexpected` the folders beside its parts that are
    neither train, validation nor test, the files in which are passed over.
    """

    entries: list[Entry]
    stray: list[Reject] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    classes: list[ClassFolder] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        """How many files were passed over."""
        return len(self.passed_over)


def is_hidden(path: str) -> bool:
    """Tell whether a path is hidden or a system's leaving (``.DS_Store``, ``__MACOSX/``, ``Thumbs.db``).

    >>> is_hidden("cat/.DS_Store"), is_hidden("cat/1.jpg")
    (True, False)
    """
    parts = PurePosixPath(path).parts
    return any(p.startswith(".") or p == "__MACOSX" for p in parts) or parts[-1].lower() in {"thumbs.db", "desktop.ini"}


def is_picture_name(path: str) -> bool:
    """Tell whether a file is named as a picture.

    >>> is_picture_name("cat/1.JPG"), is_picture_name("README.md")
    (True, False)
    """
    return PurePosixPath(path).suffix.lower() in PICTURE_SUFFIXES


def class_folders(store: FileStore, prefix: str = "", folders: Sequence[str] = (), *, lenient: bool = False) -> Listing:
    """Read classes from folder names, parts from ``train/ validation|valid|val/ test/`` above them.

    Folders that merely wrap the rest (``archive/dataset/train/...``) are looked through. `folders` are those known,
    empty ones too. Raises `DataError` for folders beside the parts, unless it is `lenient`.
    """
    listed = store.keys()
    paths = {k: PurePosixPath(k).parts for k in listed if not is_hidden(k)}
    telling = [p for k, p in paths.items() if is_picture_name(k)] or list(paths.values())  # a README says nothing
    wrapper = _wrapper(telling)
    has_parts, unexpected = _parts([p[len(wrapper) :] for p in telling])
    if unexpected and not lenient:
        raise DataError(_unexpected_fault(store.name, has_parts, unexpected))
    level = 1 if has_parts else 0
    entries, stray = [], []
    classes: dict[tuple[str, ...], ClassFolder] = {}

    def meet(inner: tuple[str, ...]) -> ClassFolder:
        part = PART_NAMES[inner[0].lower()] if has_parts else None
        label = unicodedata.normalize("NFC", inner[level])  # macOS writes names apart that others write as one
        return classes.setdefault(inner[: level + 1], ClassFolder(prefix + "/".join(inner[: level + 1]), label, part))

    for key, path in paths.items():
        inner = path[len(wrapper) :] if path[: len(wrapper)] == wrapper else ()
        if len(inner) >= level + 2 and (not has_parts or inner[0].lower() in PART_NAMES):
            folder = meet(inner)
            entries.append(Entry(store, key, prefix + key, folder.label, folder.part))
        elif is_picture_name(key):
            stray.append(Reject(prefix + key, "lies in no class folder"))
    for path in (PurePosixPath(f).parts for f in folders if not is_hidden(f)):
        inner = path[len(wrapper) :] if path[: len(wrapper)] == wrapper else ()
        if len(inner) == level + 1 and (not has_parts or inner[0].lower() in PART_NAMES):
            meet(inner)
    taken = {e.path for e in entries} | {r.path for r in stray}
    others = [prefix + key for key in listed if prefix + key not in taken]
    return Listing(entries, stray, others, list(classes.values()), sorted(unexpected))


def _wrapper(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the leading folders that all paths share and that are neither a part nor a class."""
    wrapper: tuple[str, ...] = ()
    while paths:
        depth = len(wrapper)
        deeper = [p for p in paths if len(p) > depth + 1]
        first = {p[depth] for p in deeper}
        if len(first) != 1 or min(first).lower() in PART_NAMES or min(len(p) for p in deeper) < depth + 3:
            break
        wrapper = (*wrapper, min(first))
    return wrapper


def _parts(paths: Sequence[tuple[str, ...]]) -> tuple[list[str], dict[str, int]]:
    """Return the top folders that are parts, and the others beside them with the greatest depth below each."""
    tops: dict[str, int] = {}
    for p in paths:
        if len(p) > 1:
            tops[p[0]] = max(tops.get(p[0], 0), len(p))
    named = sorted(t for t in tops if t.lower() in PART_NAMES and tops[t] > 2)  # part/class/file
    return named, {t: depth for t, depth in tops.items() if t not in named} if named else {}


def _unexpected_fault(name: str, parts: Sequence[str], others: Mapping[str, int]) -> str:
    """Say what is wrong with folders beside the parts."""
    first = min(others)
    if any(depth > 2 for depth in others.values()):
        return (
            f"{name} holds {', '.join(parts)} beside {', '.join(sorted(others))}: expected only train, validation "
            f"(or valid, val) and test there. Rename or move {first!r}."
        )
    return (
        f"{name} holds the part {parts[0]!r} beside {first!r}, which has no class folders. "
        "Move the pictures into class folders of a part."
    )


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


def is_idx(path: Path) -> bool:
    """Tell whether a file name is that of idx pictures or labels, as MNIST ships (``...-idx3-ubyte[.gz]``)."""
    return re.search(r"[-.]idx[13]", path.name) is not None


def idx_labels(pictures: Path) -> Path:
    """Return where the labels of idx pictures are expected.

    >>> idx_labels(Path("t10k-images-idx3-ubyte.gz")).name
    't10k-labels-idx1-ubyte.gz'
    """
    return pictures.with_name(pictures.name.replace("images", "labels").replace("idx3", "idx1"))


def idx_files(paths: Sequence[Path]) -> Listing:
    """Read idx pictures with their labels; ``t10k`` or ``test`` in a name makes the test part, ``train`` the training.

    Classes are the label numbers, padded with zeros so that their order is that of the numbers.
    """
    entries: list[Entry] = []
    images = [p for p in paths if "idx3" in p.name or "images" in p.name]
    if not images:
        raise DataError(f"{paths[0]} holds labels but no pictures; give the idx3 file beside it too.")
    for path in images:
        label_path = idx_labels(path)
        if not label_path.exists() or label_path == path:
            raise DataError(f"{path} has no labels: expected {label_path.name} beside it.")
        pixels, labels = _read_idx(path, 3), _read_idx(label_path, 1)
        if len(pixels) != len(labels):
            raise DataError(f"{path} holds {len(pixels)} pictures but {label_path.name} {len(labels)} labels.")
        part: Part | None = "train" if "train" in path.name else None
        part = "test" if "t10k" in path.name or "test" in path.name else part
        entries += array_entries(pixels, labels, path.name, part)
    return Listing(entries)


def array_entries(
    pixels: NDArray[np.uint8],
    labels: NDArray[Any] | Sequence[Any],
    name: str,
    part: Part | None = None,
    classes: Sequence[str] | None = None,
) -> list[Entry]:
    """Return entries of pictures in memory; `labels` are names, or integers that `classes` names."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[3:] not in ((), (1,), (3,), (4,)):
        raise DataError(
            f"{name}: pixels must be uint8 [N, H, W] or [N, H, W, 1, 3 or 4], got {pixels.dtype} {list(pixels.shape)}."
        )
    store = ArrayStore(pixels, name)
    labels = np.asarray(labels).reshape(-1)
    if len(labels) != len(pixels):
        raise DataError(f"{name}: {len(pixels)} pictures but {len(labels)} labels.")
    if labels.dtype.kind in "iu":
        names = classes or _numbered(int(labels.max(initial=0)) + 1)
        if labels.min(initial=0) < 0 or labels.max(initial=0) >= len(names):
            raise DataError(
                f"{name}: labels run from {labels.min()} to {labels.max()}, but there are {len(names)} classes."
            )
        texts = [names[i] for i in labels.tolist()]
    else:
        texts = [str(x) for x in labels.tolist()]
    return [Entry(store, str(i), f"{name}[{i}]", text, part) for i, text in enumerate(texts)]


def _numbered(count: int) -> list[str]:
    width = len(str(count - 1))
    return [f"{i:0{width}}" for i in range(count)]


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes (format: Y. LeCun, "The MNIST database")."""
    unsigned_byte = 0x08
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, rank = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{rank}I", data, 4)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(f"{path} cannot be read as an idx file: {error}.") from error
    start = 4 + 4 * rank
    if zero != 0 or kind != unsigned_byte or rank != dimensions or len(data) - start != math.prod(shape):
        raise DataError(f"{path} is not an idx file of {dimensions}-dimensional bytes, or it is cut off.")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
