"""Predict a stream of images in order; threads decode ahead while the model runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from glob import has_magic
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sightline import process
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
from sightline.data.patterns import expand_glob, expand_ranges, has_range
from sightline.data.remote import RemotePath, is_url
from sightline.data.sources.arrays import is_missing
from sightline.data.sources.encoding import decode_text, has_byte_order_mark
from sightline.data.sources.filenames import is_hidden, is_image_name, is_placeholder
from sightline.data.storage import LIMITS, FolderStore, iterate_files, read_untrusted_file
from sightline.errors import DataError, ImageError, UsageError, plural
from sightline.escaping import hide_secrets
from sightline.inference.decisions import Interpreter, predict_class
from sightline.inference.embeddings import Embeddings
from sightline.inference.predictor import NOT_FINITE_REASON, Predictor
from sightline.inference.results import Prediction, Thresholds
from sightline.inference.runner import ImageOutputs, predict_images
from sightline.preprocessing import PreprocessingSpec, detect_format, inspect_image, measure_image

REMOTE_THREADS = 16  # that wait for a network and decode; as many images as are ahead anyway


@dataclass(frozen=True, slots=True)
class InputItem:
    """One image to predict: its path, a function that reads its bytes or pixels, and its label if it has one.

    `location` is the file or the address that is read, None for what is in an archive, a table or memory. `note` is a
    remark about its archive for whoever predicts it, at the first image of one.
    """

    path: str
    read: Callable[[], Any]
    label: str | None = None
    location: str | None = None
    note: str = ""

    @property
    def is_remote(self) -> bool:
        """Whether reading it waits for a network."""
        return self.location is not None and is_url(self.location)


@dataclass(frozen=True, slots=True)
class SizedImage:
    """The preprocessed pixels of an image, and its own `width` and `height` as displayed."""

    pixels: NDArray[np.uint8]
    width: int
    height: int


DecodedItem = NDArray[np.uint8] | SizedImage


def read_location(location: str, limits: LimitsConfig) -> bytes:
    """Return the content of the file or the address `location`, as `read` of its item does."""
    if is_url(location):
        return RemotePath.parse(location).read(limits, detect_format)
    return read_untrusted_file(Path(location), limits, detect_format)


def parse_file_limits(assignments: Sequence[str]) -> LimitsConfig:
    """Return the limits set by assignments such as ``data.limits.file_mb=512``; raises `UsageError` for others."""
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

    Of an archive, or of a Parquet or Arrow file, its images; a folder may hold those in place of images.
    Standard input is the bytes of one image, or a list of paths, one per line. A path that does not exist is yielded
    too and becomes an unreadable row. Raises `DataError` for a folder without images or a glob without matches.
    """
    for argument in arguments:
        text = os.path.expanduser(argument)  # noqa: PTH111
        exists = os.path.exists(text)  # noqa: PTH110  # which is False for a name that is too long
        if text == "-" and stdin is not None:
            yield from _list_stdin(stdin(), limits)
        elif is_url(text):
            yield from _list_url(text, limits)
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
    """Take the first item, if any, from `items`, so that its errors are raised early."""
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
    if empty:  # of archives or tables, as Hugging Face's datasets are
        for key in skip_predictions(iterate_files(Path(folder)), str):
            if is_container(key) and not is_hidden(key):
                path = Path(folder, key)
                yield from _list_container(str(path), open_container(path, limits), in_folder=True)


def _list_url(url: str, limits: LimitsConfig) -> Iterator[InputItem]:
    """Yield the images at an address: of a folder, of an archive or a table, which is staged, or the image itself."""
    is_range, source = has_range(url), RemotePath.parse(next(expand_ranges(url)))
    are_files = is_image_name(source.name) or (is_range and not is_image_table(source.name))
    if are_files or not source.is_folder():
        yield from _list_remote_files(map(RemotePath.parse, expand_ranges(url)), limits)
        return
    if is_range:  # of tables that are folders of part files
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
    """Yield the images in an archive or a table, as the paths of a folder with the name of the file.

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
    """Yield the items, and call `on_message` with the note of each that has one."""
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
    """Decode a list of paths: in the encoding of its byte order mark, else as UTF-8 with escapes, like paths."""
    if has_byte_order_mark(data):
        try:
            return decode_text(data)
        except ValueError as error:
            raise DataError(f"The list on standard input cannot be read as text: {error}. Save it as UTF-8.") from error
    return data.decode("utf-8", "surrogateescape")


def make_items(images: Iterable[Any], limits: LimitsConfig = LIMITS) -> Iterator[InputItem]:
    """Yield items for paths, encoded bytes, uint8 arrays [H, W(, C)], Pillow images or items, in any mixture."""
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


def choose_threads(items: Iterable[InputItem]) -> tuple[Iterator[InputItem], int | None]:
    """Return the items, and in how many threads to read them; None, one per core, unless they wait for a network."""
    remaining = iter(items)
    first = take_first(remaining)
    is_remote = bool(first) and first[0].is_remote
    return chain(first, remaining), max(REMOTE_THREADS, process.count_cores()) if is_remote else None


def predict(
    predictor: Predictor,
    items: Iterable[InputItem],
    *,
    top: int = 5,
    batch_size: int | None = None,
    threads: int | None = None,
    thresholds: Thresholds | None = None,
    interpret: Interpreter = predict_class,
) -> Iterator[Prediction]:
    """Yield one `Prediction` for each item, in order; `error` is the reason if there is none.

    That is the case if the image cannot be read or the model returns NaN or infinity. `batch_size` None: one that suits
    the input size. With `thresholds`, each prediction has a `Decision`. `interpret` is that of the model's task.
    """
    items, chosen_threads = choose_threads(items)
    preprocess = predictor.preprocess
    decode: Callable[..., DecodedItem] = decode_sized if preprocess.resize == "pad" else decode_item
    batches = predict_images(
        predictor, items, partial(decode, preprocess), get_pixels, all_outputs=thresholds is not None,
        batch_size=batch_size, threads=threads or chosen_threads,
    )  # fmt: skip
    with closing(batches):
        for batch in batches:
            yield from make_predictions(predictor, batch, top, thresholds, interpret)


def embed(predictor: Predictor, items: Iterable[InputItem], model: str) -> Iterator[Embeddings]:
    """Yield the embeddings of all `items` in batches, in order: the features of `predictor`, whose id is `model`.

    An image that cannot be read, or whose features are not finite, has a row of NaN and a reason.
    """
    items, threads = choose_threads(items)
    batches = predict_images(
        predictor, items, partial(decode_item, predictor.preprocess), get_pixels, all_outputs=True, threads=threads,
    )  # fmt: skip
    size = 0
    with closing(batches):
        for batch in batches:
            size = size or next((len(image.features) for image in batch if image.features is not None), 0)
            size = size or compute_feature_size(predictor)
            yield _make_embeddings(batch, size, model)


def compute_feature_size(predictor: Predictor) -> int:
    """Return the number of features that `predictor` has for an image."""
    return int(predictor.outputs(np.zeros((1, *predictor.preprocess.shape), np.uint8)).features.shape[1])


def _make_embeddings(batch: Sequence[ImageOutputs[InputItem, NDArray[np.uint8]]], size: int, model: str) -> Embeddings:
    vectors = np.full((len(batch), size), np.nan, np.float32)
    errors: list[str | None] = []
    for row, image in zip(vectors, batch, strict=True):
        error = image.error
        if image.features is not None and np.isfinite(image.features).all():
            row[:] = image.features
        elif error is None:
            error = NOT_FINITE_REASON
        errors.append(error)
    items = [image.item for image in batch]
    return Embeddings(vectors, tuple(i.path for i in items), tuple(i.label for i in items), tuple(errors), model)


def get_pixels(decoded: DecodedItem) -> NDArray[np.uint8]:
    """Return the pixels of a decoded image."""
    return decoded.pixels if isinstance(decoded, SizedImage) else decoded


def decode_item(preprocess: PreprocessingSpec, item: InputItem) -> NDArray[np.uint8]:
    """Read an item and decode it; raises `ImageError` if that fails, `UsageError` for what is not an image."""
    content = item.read()
    try:
        return preprocess.convert(content)
    except UsageError as error:
        raise UsageError(f"Image {item.path}: {error}.") from error


def decode_sized(preprocess: PreprocessingSpec, item: InputItem) -> SizedImage:
    """Read an item and decode it as `decode_item` does, and state the size of the image."""
    content = item.read()
    width, height = find_size(preprocess, content)
    return SizedImage(decode_item(preprocess, replace(item, read=lambda: content)), width, height)


def find_size(preprocess: PreprocessingSpec, content: Any) -> tuple[int, int]:
    """Return the width and height of an image, encoded or as pixels, as displayed; raises `ImageError`."""
    if isinstance(content, bytes | bytearray | memoryview):
        header = inspect_image(content, preprocess.page, preprocess.max_megapixels)
        return header.width, header.height
    if isinstance(content, Image.Image):
        return measure_image(content)
    height, width = (*np.shape(content), 1, 1)[:2]  # decoding refuses what is not an image
    return width, height


def make_predictions(
    predictor: Predictor,
    batch: Sequence[ImageOutputs[InputItem, Any]],
    top: int,
    thresholds: Thresholds | None,
    interpret: Interpreter,
) -> Iterator[Prediction]:
    """Yield the prediction of each image of a batch: what `interpret` returns, or why there is none."""
    for image in batch:
        path, row, decoded = image.item.path, image.probabilities, image.decoded
        if row is not None and row.ndim == 3 and isinstance(decoded, SizedImage):  # of each pixel
            row = predictor.preprocess.cut_padding(row, decoded.width, decoded.height)
        if row is None:
            yield Prediction(path, error=image.error)
        else:
            yield interpret(path, row, image.logits, predictor.classes, top=top, thresholds=thresholds)
