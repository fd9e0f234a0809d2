"""Index data sources: list their readable images with labels and hashes, and the unreadable ones with reasons."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sightline import jsonio, preprocess, process
from sightline.config import DataConfig, LimitsConfig
from sightline.data import datasets
from sightline.data.archives import TarStore, ZipStore
from sightline.data.sources.filenames import is_picture_name
from sightline.data.sources.finder import Finder
from sightline.data.sources.folder import STRAY, class_folders, is_flat
from sightline.data.sources.idx import idx_files, idx_labels, is_idx
from sightline.data.sources.listing import Entry, Listing
from sightline.data.sources.manifest import is_table, label_by_table, labels_beside, manifest, read_labels
from sightline.data.sources.splits import split_by_source_names
from sightline.data.stores import DrawnStore, FolderStore
from sightline.errors import DataError, PictureError, UsageError, plural
from sightline.records import Index, Picture, Progress, Reject, Remark, no_progress

DEFAULTS = DataConfig()
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

Source = str | Path
Sources = Source | Listing | Sequence[Source | Listing]


def as_list(sources: Sources) -> list[Source | Listing]:
    """Return one or several sources as a list; raises `UsageError` for anything else, such as bare arrays."""
    many = [sources] if isinstance(sources, str | Path | Listing) else list(sources)
    for source in many:
        if not isinstance(source, str | Path | Listing):
            raise UsageError(
                f"Images come from a path or a Listing, not from {type(source).__name__}: for arrays in memory, "
                "build the entries of a Listing with sightline.data.sources.arrays.array_entries."
            )
    return many


def index(
    sources: Sources,
    progress: Progress = no_progress,
    threads: int | None = None,
    *,
    options: DataConfig = DEFAULTS,
    lenient: bool = False,
) -> Index:
    """Index the images of one or several sources, reading every file once (hash and header, no pixels).

    A source is a folder of class folders (optionally inside train, validation and test), a ``.zip`` or ``.tar`` of such
    a folder, a manifest (CSV, JSON), idx files or a folder of them, a named data set, or a `Listing` of arrays.
    `options` are the settings of ``[data]`` in docs/reference.md, which control how a source is read.

    Raises `DataError` if a source is missing, has no images, or gives a split for only some of them; also for folders
    next to train, validation and test, unless `lenient` is true: then they are ignored with a remark.
    """
    many = _without_idx_labels(as_list(sources))
    listings = list_sources(many, options, lenient=lenient)
    entries = [e for listing in listings for e in listing.entries]
    name = "+".join(dict.fromkeys(_short(s) for s in many))
    _check_labels(entries)
    stated = {e.part is not None for e in entries}
    if len(stated) > 1:
        whole = next(e.path for e in entries if e.part is None)
        raise DataError(
            f"Some images are in a split (train, validation or test), but others, such as {whole}, are not: put every "
            "image into a split, or none."
        )
    found = _look_into(entries, progress, threads)
    pictures = [(e, p) for e, p in zip(entries, found, strict=True) if isinstance(p, Picture)]
    rejects = [r for listing in listings for r in listing.stray] + [r for r in found if isinstance(r, Reject)]
    others = [path for listing in listings for path in listing.passed_over]
    others += [e.path for e, f in zip(entries, found, strict=True) if f is None]
    if not pictures:
        raise DataError(_nothing_found(many, rejects, others))

    def read(i: int) -> bytes | NDArray[np.uint8]:
        return _read_again(*pictures[i])

    held = {(e.label, e.part) for e, f in zip(entries, found, strict=True) if f is not None}
    empty = [c.path for listing in listings for c in listing.classes if (c.label, c.part) not in held]
    remarks = [remark for listing in listings for remark in listing.remarks]
    return Index(
        name, tuple(p for _, p in pictures), tuple(rejects), len(others), read,
        tuple(sorted(others)), tuple(sorted(empty)), tuple(remarks),
    )  # fmt: skip


def _check_labels(entries: Sequence[Entry]) -> None:
    """Raise `DataError` for a class name that is not valid Unicode text: no bundle could store it."""
    for label, path in {e.label: e.path for e in reversed(entries)}.items():
        if not jsonio.is_text(label):
            raise DataError(
                f"The class name {label!r}, of {path!r}, is not valid UTF-8, so a model cannot store it: rename the "
                "folder."
            )


def list_sources(sources: Sources, options: DataConfig = DEFAULTS, *, lenient: bool = False) -> list[Listing]:
    """Return one listing per source, read with `options`.

    Listings are sources themselves, so commands such as `evaluate` can pass on sources read with specific options.
    Raises `DataError` as `index` does.
    """
    many = _without_idx_labels(as_list(sources))
    for source in many:
        if not isinstance(source, Listing) and not jsonio.is_text(str(source)):
            raise DataError(
                f"The name {str(source)!r} is not valid UTF-8, so a run cannot record where its images came from: "
                "rename it."
            )
    if not many:
        raise DataError(
            "No source given: pass a folder, an archive, a manifest or the name of a data set such as beans."
        )
    listings = [
        s
        if isinstance(s, Listing)
        else list_source(s, f"{_short(s)}/" if len(many) > 1 else "", options, lenient=lenient)
        for s in many
    ]
    return split_by_source_names([_short(s) for s in many], listings)


def name_sources(sources: Sources) -> str:
    """Return the sources joined for a message, each as the user wrote it."""
    return "+".join(_short(s) if isinstance(s, Listing) else str(s) for s in as_list(sources))


def _without_idx_labels(sources: Sequence[Source | Listing]) -> list[Source | Listing]:
    """Drop idx label files passed along with their image files, which find them by name."""
    paths = [Path(s) for s in sources if not isinstance(s, Listing) and is_idx(Path(s))]
    labels = {idx_labels(p) for p in paths if idx_labels(p) != p}
    return [s for s in sources if isinstance(s, Listing) or Path(s) not in labels]


def _short(source: Source | Listing) -> str:
    if isinstance(source, Listing):
        return source.entries[0].store.name if source.entries else "arrays"
    text = str(source)
    return text if datasets.is_named(text) else Path(text).resolve().name


def list_source(source: Source, prefix: str = "", options: DataConfig = DEFAULTS, *, lenient: bool = False) -> Listing:
    """List the contents of a source, given by path or name, without opening any image."""
    text = str(source)
    path = Path(text).expanduser()
    if not path.exists():
        if datasets.is_named(text):
            return datasets.load(text)
        known = ", ".join(datasets.NAMES)
        raise DataError(
            f"There is no folder, file or data set {text!r}. Check the path; the named data sets are {known}."
        )
    if path.is_dir() and (files := sorted(p for p in path.iterdir() if p.is_file() and is_idx(p))):
        return idx_files(files, options.limits)
    if (store := _open_store(path, options.limits)) is not None:
        return _list_files(store, prefix, options, path if path.is_dir() else None, lenient=lenient)
    if is_table(path):
        return manifest(path, options)
    if is_idx(path):
        return idx_files([path], options.limits)
    raise DataError(
        f"{path} is not a source of labeled images: expected a folder of class folders, a .zip or .tar of one, "
        "a manifest (.csv, .tsv, .json, .jsonl), or idx files."
    )


def _open_store(path: Path, limits: LimitsConfig) -> FolderStore | ZipStore | TarStore | None:
    """Open a folder or an archive as a store; return None for anything else."""
    name = path.name.lower()
    if path.is_dir():
        return FolderStore(path, limits)
    if name.endswith(".zip"):
        return ZipStore(path, limits)
    return TarStore(path, limits) if name.endswith(ARCHIVE_SUFFIXES) else None


def _list_files(
    store: FolderStore | ZipStore | TarStore,
    prefix: str,
    options: DataConfig,
    folder: Path | None = None,
    *,
    lenient: bool,
) -> Listing:
    """List a folder or archive, with labels from a table, from file names or from folders."""
    if options.labels:
        return read_labels(_labels_file(options.labels, folder), store, options, prefix)
    if not options.label_pattern and options.class_level is None and is_flat(store):
        table = labels_beside(store, folder)
        if table is not None:
            return label_by_table(*table, Finder(store), options, prefix, whole=True)
    listing = class_folders(store, prefix, store.folders(), options, lenient=lenient)
    remarks = [Remark("repeated-members", prefix + name, "kept under unique names") for name in store.repeated]
    return replace(listing, remarks=[*listing.remarks, *remarks])


def _labels_file(text: str, folder: Path | None) -> Path:
    """Return the path of ``data.labels``: as given if it exists, else inside the source folder."""
    path = Path(text).expanduser()
    return folder / path if folder is not None and not path.exists() else path


def _look_into(entries: Sequence[Entry], progress: Progress, threads: int | None) -> list[Picture | Reject | None]:
    found: list[Picture | Reject | None] = []
    step = 256  # entries per task: small enough for progress, large enough for negligible overhead
    chunks = [entries[i : i + step] for i in range(0, len(entries), step)]
    with ThreadPoolExecutor(threads or process.cores()) as pool:
        for part in pool.map(lambda chunk: [_look(e) for e in chunk], chunks):
            found += part
            progress("indexing", len(found), len(entries))
    return found


def _look(entry: Entry) -> Picture | Reject | None:
    if isinstance(entry.store, DrawnStore):
        height, width, channels = entry.store.shape
        digest = entry.store.identity(entry.key)
        return Picture(entry.path, digest, entry.label, entry.part, width, height, channels == 1, entry.extra)
    try:
        content = entry.store.read(entry.key, preprocess.find_format)
        if isinstance(content, np.ndarray):
            return _array_picture(entry, content)
        header = preprocess.inspect(content)
    except PictureError as error:
        if not (entry.named or is_picture_name(entry.key)):
            return None
        return Reject(entry.path, str(error), entry.label)
    digest = _hash(content)
    grey = header.mode in {"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F"}
    return Picture(
        entry.path, digest, entry.label, entry.part, header.width, header.height, grey, entry.extra, header.deep,
        header.stated,
    )  # fmt: skip


def _array_picture(entry: Entry, pixels: NDArray[np.uint8]) -> Picture:
    digest = _hash(pixels)
    grey = pixels.ndim == 2 or pixels.shape[-1] == 1
    return Picture(entry.path, digest, entry.label, entry.part, pixels.shape[1], pixels.shape[0], grey, entry.extra)


def _hash(content: bytes | NDArray[np.uint8]) -> str:
    """Return the SHA-256 of encoded bytes, or of the dtype, shape and values of pixels."""
    if isinstance(content, np.ndarray):
        return hashlib.sha256(f"{content.dtype}{content.shape}".encode() + content.tobytes()).hexdigest()
    return hashlib.sha256(content).hexdigest()


def _read_again(entry: Entry, picture: Picture) -> bytes | NDArray[np.uint8]:
    """Return the content that was indexed; raises `DataError` if it has changed since.

    Pixels, features and splits are stored under the hash from the index: changed bytes would poison those caches.
    """
    try:
        content = entry.store.read(entry.key)
    except PictureError as error:  # it was readable during indexing
        raise DataError(_changed(entry.path, f" ({error})")) from error
    if not isinstance(entry.store, DrawnStore) and _hash(content) != picture.sha256:
        raise DataError(_changed(entry.path))
    return content


def _changed(path: str, reason: str = "") -> str:
    return (
        f"{path} changed while the images were being read{reason}: wait until nothing writes to them, then run again."
    )


def _nothing_found(sources: Sequence[Source | Listing], rejects: Sequence[Reject], others: Sequence[str]) -> str:
    where = name_sources(list(sources))
    if not rejects:
        archives = [path for path in others if path.lower().endswith(ARCHIVE_SUFFIXES)]
        held = f" It has archives, such as {archives[0]}: pass those instead." if archives else ""
        return (
            f"No images in {where}: expected one folder per class with images inside, as in cat/1.jpg, dog/2.jpg.{held}"
        )
    first = rejects[0]
    advice = ""
    if all(reject.reason == STRAY for reject in rejects):
        advice = (
            " Sort the images into one folder per class, or say where their labels are: in the file names with "
            "--set data.label_pattern=..., or in a table with --set data.labels=FILE."
        )
    return (
        f"None of the {plural(len(rejects), 'image')} in {where} can be used; the first, {first.path}: {first.reason}."
        f"{advice}"
    )
