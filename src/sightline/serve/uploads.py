"""The images of a request: a single image as the body, a form with files, or JSON with base64."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from sightline import jsonio
from sightline.serve.admission import check_encoding, read_body
from sightline.serve.limits import MAX_IMAGES
from sightline.serve.tensors import decode_base64

FORM, JSON = "multipart/form-data", "application/json"
URL_ENCODED = "application/x-www-form-urlencoded"  # the default of curl, whatever the body is
CURL_ADVICE = " With curl, send a file with --data-binary: -d removes its line breaks."
CHARSETS = {"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin1"}  # allowed for the text of a form
EXAMPLE = "curl -F image=@photo.jpg"
MAX_COMMAS = 2 * MAX_IMAGES  # in JSON: one after each image, and one in each data URL


def silence_form_reader() -> None:
    """Keep the form parser from logging each bad form, so that clients cannot fill the log."""
    logging.getLogger("python_multipart").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class Upload:
    """The images of a request.

    Attributes:
        files: The encoded images.
        names: Their file names from a form; None if the images have no names.
        is_list: Whether the client asks for a list of predictions, even for a single image.
        advice: What to do if the image cannot be read; "" or a sentence after a space.
    """

    files: Sequence[bytes | bytearray]
    names: Sequence[str] | None = None
    is_list: bool = False
    advice: str = ""

    def get_single(self) -> bytes | bytearray:
        """Return the only image; raise `HTTPException` if there are several."""
        if len(self.files) != 1:
            raise HTTPException(400, f"The request has {len(self.files)} images: send one.")
        return self.files[0]


class _FormParser(MultiPartParser):
    """Starlette's parser, which keeps files in memory: their size is limited, and there may be no disk to write to."""

    spool_max_size = 0  # no limit

    def __init__(self, request: Request) -> None:
        super().__init__(request.headers, self._read(request), max_files=MAX_IMAGES)
        self._is_complete = False

    async def _read(self, request: Request) -> AsyncGenerator[bytes, None]:
        """Yield the body; raise `MultiPartException` if it ends early: Starlette would silently drop the last file."""
        async for chunk in request.stream():
            yield chunk
        if not self._is_complete:
            raise MultiPartException("its last boundary is missing")

    def on_end(self) -> None:
        """Record that the final boundary of the form was reached."""
        self._is_complete = True


async def read_upload(request: Request) -> Upload:
    """Return the images of a request; raise `HTTPException` for a body without any."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == FORM:
        return await _read_form(request)
    if kind.startswith("multipart/"):
        raise HTTPException(415, f"The body is {kind[:80]}: send the bytes of an image, or a form ({EXAMPLE}).")
    body = await read_body(request)
    if kind == JSON:
        return await asyncio.to_thread(_parse_json, body)
    return Upload([body], advice=CURL_ADVICE if kind == URL_ENCODED else "")


async def _read_form(request: Request) -> Upload:
    """Return the files of a form, whatever the names of their fields.

    The charset is restricted because Starlette passes it to Python: punycode would take minutes for a megabyte.
    """
    check_encoding(request)
    charset = parse_options_header(request.headers["content-type"])[1].get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in CHARSETS:
        raise HTTPException(415, f"The charset of the form is {charset[:80]!r}: send UTF-8.")
    parser = _FormParser(request)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, f"The form cannot be read: {error.message.rstrip('.')}.") from None
    try:
        files, names = [], []
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                raise HTTPException(
                    400, f"The field {name[:80]!r} of the form is not a file: send files, as {EXAMPLE}."
                )
            files.append(await value.read())
            names.append(value.filename or "")
    finally:
        await form.close()
    if not files:
        raise HTTPException(400, f"The form has no file: send at least one, as {EXAMPLE}.")
    return Upload(files, names, is_list=True)


def _parse_json(body: bytes | bytearray) -> Upload:
    """Return the images of ``{"image": BASE64}`` or ``{"images": [BASE64, ...]}``.

    Other content is refused before it is parsed: millions of empty objects would take 30 times its size in memory.
    """
    if body.count(b"{") > 1 or body.count(b"[") > 1:
        raise HTTPException(400, "The request is not JSON with one field, 'image' or 'images'.")
    if body.count(b",") > MAX_COMMAS:
        raise HTTPException(400, f"The request has too many elements: it may have at most {MAX_IMAGES} images.")
    try:
        content = jsonio.loads(bytes(body))
    except ValueError as error:
        raise HTTPException(400, f"The request is not JSON: {error}.") from None
    if not isinstance(content, dict) or len(content) != 1 or not content.keys() <= {"image", "images"}:
        raise HTTPException(400, "The request is not a JSON object with one field, 'image' or 'images'.")
    is_list = "images" in content
    texts: Any = content["images"] if is_list else [content["image"]]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        expected = (
            "a list of one or more strings, each the base64 of an image file"
            if is_list
            else "the base64 of an image file"
        )
        raise HTTPException(400, f"The field {next(iter(content))!r} is not {expected}.")
    if len(texts) > MAX_IMAGES:
        raise HTTPException(400, f"The request has {len(texts)} images, but may have at most {MAX_IMAGES}.")
    try:
        return Upload([decode_base64(text, f"Image {i}") for i, text in enumerate(texts)], is_list=is_list)
    except ValueError as error:
        raise HTTPException(400, f"{error}.") from None
