"""Write the images of an index as folders, one per class and split, with links to the images."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sightline import _io
from sightline.callbacks import Progress, no_progress
from sightline.data.sources.filenames import IMAGE_SUFFIXES, fold_name
from sightline.data.types import Index
from sightline.errors import DataError, OutputError, UsageError, plural
from sightline.preprocessing import encode_png

MAX_NAME = 200  # bytes; file systems allow 255
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]|%(?=[0-9A-Fa-f]{2})|^[._]|[. ]$|[\udc80-\udcff]')
"""Not allowed in names: readers skip ``.name`` and ``__MACOSX``; the last range is bytes that are not UTF-8."""
_RESERVED = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(?=\.|$)", re.IGNORECASE)  # Windows device names


@dataclass(frozen=True, slots=True)
class ClassFolders:
    """What was written: the number of images, of links to them by kind, and of copies.

    `left_out` counts images without a class, or without a split where others have one. `renamed` maps each class whose
    name cannot be a folder name to its folder.
    """

    path: str
    images: int
    hard_links: int
    symbolic_links: int
    copies: int
    left_out: int
    renamed: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        kinds = {"hard link": self.hard_links, "symbolic link": self.symbolic_links}
        parts = [plural(count, kind) for kind, count in kinds.items() if count]
        if self.copies:
            parts.append(f"{plural(self.copies, 'copy', 'copies')}, since links are not possible")
        if self.left_out:
            parts.append(f"{plural(self.left_out, 'image')} without a class or a split left out")
        parts += [f"the class {label!r} is in {folder}" for label, folder in self.renamed.items()]
        return f"{plural(self.images, 'image')}: {'; '.join(parts)}"


def write_class_folders(
    index: Index, path: Path, sources: Iterable[str | Path] = (), progress: Progress = no_progress
) -> ClassFolders:
    """Write a new folder with a hard link to each image, else a symbolic link, or a copy if neither is possible.

    Images are in ``path/CLASS/NAME``, or in ``path/SPLIT/CLASS/NAME`` if they have splits; an image with several labels
    is in the folder of each. Characters that some file systems do not allow are percent-encoded, and files with the
    same name are numbered.

    Raises:
        UsageError: If `path` is in one of the `sources`, where the images would be read twice.
        OutputError: If `path` exists and is not an empty folder, or cannot be written; nothing is then left behind.
        DataError: If no image has a class.
    """
    for source in map(Path, sources):
        if source.is_dir() and path.resolve().is_relative_to(source.resolve()):
            raise UsageError(f"{path} is in {source}, which would hold its images twice: choose a folder outside.")
    if not _io.is_free(path):
        raise OutputError(f"{path} exists: choose another folder.")
    _io.refuse_links_in_run(path.parent)
    temporary = _io.temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        written = _write_images(index, temporary, str(path), progress)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}. Choose another folder.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # exists only after a failure
    return written


def _write_images(index: Index, root: Path, path: str, progress: Progress) -> ClassFolders:
    has_splits = any(image.split for image in index.images)
    names, kinds = _Names(), Counter[str]()
    left_out = 0
    folders: dict[tuple[str | None, str], Path] = {}
    for i, image in enumerate(index.images):
        classes = [name for name in index.targets.list_classes(image.label) if name]
        left_out += not classes or (has_splits and image.split is None)
        for label in classes if image.split or not has_splits else ():
            key = (image.split, label)
            if key not in folders:
                parent = root / image.split if image.split else root
                folders[key] = parent / names.choose(parent, escape_name(label))
                folders[key].mkdir(parents=True)
            kinds[_place(index, i, folders[key], names)] += 1
        if i % 100 == 0:
            progress("linking", i, len(index.images))
    if not kinds:
        raise DataError(f"No image of {index.name} has a class: label some with `sightline studio`.")
    progress("linking", len(index.images), len(index.images))
    renamed = {label: folder.name for (_, label), folder in folders.items() if folder.name != label}
    count = len(index.images) - left_out
    return ClassFolders(path, count, kinds["hard"], kinds["symbolic"], kinds["copy"], left_out, renamed)


def _place(index: Index, i: int, folder: Path, names: _Names) -> str:
    """Put image `i` into a folder; return "hard" or "symbolic" for a link, or "copy"."""
    base = escape_name(PurePosixPath(index.images[i].path.replace("\\", "/")).name)
    file = None if index.find_file is None else index.find_file(i)
    if file is not None:
        target, source = folder / names.choose(folder, base), file.resolve()
        for kind, link in (("hard", os.link), ("symbolic", os.symlink)) if source.exists() else ():
            try:
                link(source, target)
            except (OSError, NotImplementedError):  # another disk, no permission
                continue
            return kind
    content = index.read(i)
    if isinstance(content, np.ndarray):
        content, base = encode_png(content), f"{Path(base).stem if _has_suffix(base) else base}.png"
    elif not _has_suffix(base):
        base += _find_suffix(content)
    target = target if file is not None else folder / names.choose(folder, base)
    with _io.create_exclusive(target) as copy:
        copy.write(content)
    return "copy"


def _has_suffix(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _find_suffix(content: bytes) -> str:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:  # the header was readable during indexing
        return f".{(image.format or 'png').lower()}"


def escape_name(name: str) -> str:
    """Return a name that every file system accepts, with all other characters percent-encoded.

    >>> escape_name("../a"), escape_name("50% off"), escape_name("con"), escape_name(".")
    ('%2E.%2Fa', '50% off', '%63on', '%2E')
    """
    escaped = _UNSAFE.sub(lambda match: f"%{ord(match[0]) & 0xFF:02X}", name)
    if _RESERVED.match(escaped):
        escaped = f"%{ord(escaped[0]):02X}{escaped[1:]}"
    suffix = PurePosixPath(escaped).suffix if _has_suffix(escaped) else ""
    stem = escaped.removesuffix(suffix).encode()[: MAX_NAME - len(suffix)]
    return stem.decode(errors="ignore") + suffix


class _Names:
    """Keeps names in a folder distinct, even on file systems that ignore case and the encoding of accents."""

    def __init__(self) -> None:
        self._counts: dict[tuple[Path, str], int] = {}

    def choose(self, folder: Path, name: str) -> str:
        """Return `name`, with a number appended if it is already taken."""
        chosen, suffix = name, PurePosixPath(name).suffix
        stem = name[: len(name) - len(suffix)]
        key = (folder, fold_name(name))
        while (folder, fold_name(chosen)) in self._counts:
            self._counts[key] = self._counts.get(key, 1) + 1
            chosen = f"{stem}-{self._counts[key]}{suffix}"
        self._counts[folder, fold_name(chosen)] = 1
        return chosen
