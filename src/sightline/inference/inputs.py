"""The images to predict: files, folders, archives, tables, globs, addresses, standard input, or pixels in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from glob import has_magic
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from sightline.config import LimitsConfig, resolve_config
from sightline.data.archives import TarStore, ZipStore
from sightline.data.containers import (
    Container,
    is_container,
    open_ahead,
    open_container,
    skip_predictions,
)
from sightline.data.image_tables import ImageTable, is_image_table
from sightline.data.remote import RemotePath, is_url
from sightline.data.sources.arrays import is_missing
from sightline.data.sources.encoding import decode_text, has_byte_order_mark
from sightline.data.sources.filenames import is_hidden, is_image_name, is_placeholder
from sightline.data.storage import LIMITS, FolderStore, holds_model, iterate_files, read_untrusted_file
from sightline.errors import DataError, ImageError, UsageError, plural
from sightline.escaping import hide_secrets
from sightline.inference.patterns import expand_glob, expand_ranges, has_range
from sightline.preprocessing import detect_format, inspect_image


@dataclass(frozen=True, slots=True)
class InputItem:
    """An image to predict: its path, a function that reads its bytes or pixels, and its label if it has one.

    `location` is the file or address to read; None for images in an archive, a table or memory. `note` is a remark to
    the user about the archive, on the archive's first image.
    """

    path: str
    read: Callable[[], Any]
    label: str | None = None
    location: str | None = None
    note: str = ""

    @property
    def is_remote(self) -> bool:
        """Whether reading it waits for the network."""
        return self.location is not None and is_url(self.location)


def read_location(location: str, limits: LimitsConfig) -> bytes:
    """Return the content of the file or address `location`, like `read` of its item."""
    if is_url(location):
        return RemotePath.parse(location).read(limits, detect_format)
    return read_untrusted_file(Path(location), limits, detect_format)


def parse_file_limits(assignments: Sequence[str]) -> LimitsConfig:
    """Return the limits set by assignments like ``data.limits.file_mb=512``; raises `UsageError` for anything else."""
    for text in assignments:
        if not text.startswith("data.limits."):
            raise UsageError(
                f"Only limits on files and archives can be set here, such as data.limits.file_mb=512, not {text!r}."
            )
    return resolve_config(assignments=assignments).data.limits if assignments else LIMITS


def expand_inputs(
    arguments: Sequence[str | Path], stdin: Callable[[], bytes] | None = None, limits: LimitsConfig = LIMITS
) -> Iterator[InputItem]:
    """Yield the images that files, folders (all images below, sorted), globs, ranges and ``-`` (`stdin`) refer to.

    An archive, or a Parquet or Arrow file, yields the images in it; a folder may contain such files instead of images.
    Standard input is the bytes of one image, or a list of paths, one per line. A path that does not exist is yielded
    too and becomes an unreadable row. Raises `DataError` for a model, a folder without images or a glob that matches
    nothing.
    """
    for argument in arguments:
        text = os.path.expanduser(argument)  # noqa: PTH111
        exists = os.path.exists(text)  # noqa: PTH110  # returns False for a name that is too long
        if text == "-" and stdin is not None:
            yield from _list_stdin(stdin(), limits)
        elif is_url(text):
            yield from _list_url(text, limits)
        elif exists and holds_model(Path(text)):
            raise DataError(f"{text} is a model, not images: name the images to use it on.")
        elif exists and Path(text).is_dir():
            yield from _require_images(text, _list_folder(text, limits))
        elif not exists and has_range(text):
            yield from expand_inputs([*expand_ranges(text)], limits=limits)
        elif not exists and has_magic(text):
            yield from expand_inputs(expand_glob(text), limits=limits)
        elif exists and is_container(text) and Path(text).is_file():
            yield from _list_container(text, open_container(Path(text), limits))
        else:
            yield _make_file_item(text, limits)


def _make_file_item(path: str, limits: LimitsConfig) -> InputItem:
    return InputItem(path, partial(read_location, path, limits), location=path)


def take_first(items: Iterator[InputItem]) -> list[InputItem]:
    """Return a list of the first item, if any, so that its errors are raised early."""
    return list(islice(items, 1))


def _list_folder(folder: str, limits: LimitsConfig) -> Iterator[InputItem]:
    """Yield the images below a folder as indexing does: links are followed, other files are tried by content."""
    store = FolderStore(Path(folder), limits)
    empty = True
    for key in iterate_files(Path(folder)):
        if not is_placeholder(key) and (is_hidden(key) or not (is_image_name(key) or _is_image(store, key))):
            continue
        empty = False
        yield _make_file_item(str(Path(folder, key)), limits)
    if empty:  # perhaps a folder of archives or tables, like Hugging Face datasets
        for key in skip_predictions(iterate_files(Path(folder)), str):
            if is_container(key) and not is_hidden(key):
                path = Path(folder, key)
                yield from _list_container(str(path), open_container(path, limits), in_folder=True)


def _list_url(url: str, limits: LimitsConfig) -> Iterator[InputItem]:
    """Yield the images at an address: in a folder, in an archive or table (which is staged), or the image itself."""
    is_range, source = has_range(url), RemotePath.parse(next(expand_ranges(url)))
    are_files = is_image_name(source.name) or (is_range and not is_image_table(source.name))
    if are_files or not source.is_folder():
        yield from _list_remote_files(map(RemotePath.parse, expand_ranges(url)), limits)
        return
    if is_range:  # tables that are folders of part files
        for text in expand_ranges(url):
            yield from _list_url(text, limits)
        return
    names = ((file, file.url.removeprefix(source.url).lstrip("/")) for file in source.walk())
    named = skip_predictions(names, itemgetter(1))
    files = (file for file, key in named if not is_hidden(key) and (is_image_name(key) or is_container(key)))
    yield from _require_images(url, _list_remote_files(files, limits, in_folder=True))


def _require_images(folder: str, items: Iterable[InputItem]) -> Iterator[InputItem]:
    empty = True
    for item in items:
        empty = False
        yield item
    if empty:
        raise DataError(f"The folder {hide_secrets(folder)} contains no images.")


def _list_remote_files(
    files: Iterable[RemotePath], limits: LimitsConfig, *, in_folder: bool = False
) -> Iterator[InputItem]:
    for are_containers, group in groupby(files, lambda file: is_container(file.name)):
        if are_containers:
            for url, store in open_ahead(group, limits):
                yield from _list_container(url, store, in_folder=in_folder)
        else:
            yield from (
                InputItem(file.url, partial(file.read, limits, detect_format), location=file.url) for file in group
            )


def _list_container(file: str, store: Container, *, in_folder: bool = False) -> Iterator[InputItem]:
    """Yield the images in an archive or a table, with paths as in a folder that has the name of the file.

    A table in a folder may have no rows: Spark and Dask write one for an empty part.
    """
    empty = True
    for key in store.keys():  # noqa: SIM118  # not a dict
        if isinstance(store, ImageTable) or (not is_hidden(key) and (is_image_name(key) or _is_image(store, key))):
            note = _describe_repeated_names(file, store.repeated_names) if empty else ""
            empty = False
            yield InputItem(f"{file}/{key}", partial(store.read, key, detect_format), note=note)
    if empty and not (in_folder and isinstance(store, ImageTable)):
        raise DataError(f"{hide_secrets(file)} contains no images.")


def _describe_repeated_names(file: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    verb = "occurs" if len(names) == 1 else "occur"
    return (
        f"{file}: {plural(len(names), 'name')} {verb} more than once, e.g. {names[0]}; every such file is read, the "
        "second as `name (2)`."
    )


def report_notes(items: Iterable[InputItem], on_message: Callable[[str], None]) -> Iterator[InputItem]:
    """Yield the items, and pass their notes, if any, to `on_message`."""
    for item in items:
        if item.note:
            on_message(item.note)
        yield item


def _is_image(store: FolderStore | ZipStore | TarStore, key: str) -> bool:
    try:
        inspect_image(store.read(key, detect_format))
    except ImageError:
        return False
    return True


def _list_stdin(data: bytes, limits: LimitsConfig) -> Iterator[InputItem]:
    try:
        inspect_image(data)
        is_image = True
    except ImageError:
        # a damaged image: only UTF-16 text contains zero bytes
        is_image = b"\0" in data and not has_byte_order_mark(data)
    if is_image:
        yield InputItem("-", lambda: data)
    else:
        yield from expand_inputs(
            [line.strip() for line in _decode_path_list(data).split("\n") if line.strip()], limits=limits
        )


def _decode_path_list(data: bytes) -> str:
    """Decode a list of paths: in the encoding of its byte order mark, else as UTF-8 with surrogate escapes."""
    if has_byte_order_mark(data):
        try:
            return decode_text(data)
        except ValueError as error:
            raise DataError(f"The list on standard input cannot be read as text: {error}. Save it as UTF-8.") from error
    return data.decode("utf-8", "surrogateescape")


def make_items(images: Iterable[Any], limits: LimitsConfig = LIMITS) -> Iterator[InputItem]:
    """Yield items for any mixture of paths, encoded bytes, uint8 arrays [H, W(, C)], Pillow images and items."""
    for number, image in enumerate(images):
        if isinstance(image, InputItem):
            yield image
        elif isinstance(image, str | Path):
            yield from expand_inputs([image], limits=limits)
        elif is_missing(image):
            raise UsageError(
                f"Image [{number}] is missing: it is {image} instead of a path or an image. Leave it out: for a "
                "column of paths, use frame['path'].dropna()."
            )
        elif isinstance(image, Mapping):
            raise UsageError(
                f"Image [{number}] is a row with {', '.join(map(repr, image))}: give the column of images alone, as in "
                "data['image']."
            )
        else:
            yield InputItem(f"[{number}]", lambda value=image: value)  # type: ignore[misc]  # mypy cannot infer a default
