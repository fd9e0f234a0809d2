"""Building blocks of the studio's pages: templates with texts in the reader's language, and JSON for their scripts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from sightline import jsonio
from sightline.escaping import quote_path
from sightline.report.templates import escape_control
from sightline.studio import messages

FOLDER = Path(__file__).parent
BLOCK_ROWS = 50  # shown at a time in a table with a row for each class
MAX_BODY = 1 << 20  # bytes in a JSON request
FRESH = {"Cache-Control": "no-store"}
IMMUTABLE = {"Cache-Control": "private, max-age=31536000, immutable"}
POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
"""Content-Security-Policy of pages: the default for responses without their own."""


class _Key(str):
    """A text for scripts that is not shown to people."""

    __slots__ = ()


def _finalize(value: Any) -> Any:
    """Return a value as it appears in a page."""
    return value if isinstance(value, _Key) else escape_control(value)


class StrictJSONResponse(Response):
    """Strict JSON of any value, lone surrogates in names included; never stored."""

    media_type = "application/json"

    def __init__(self, content: Any, status_code: int = 200) -> None:
        super().__init__(jsonio.encode_text(jsonio.dumps(content)), status_code, FRESH)


@dataclass(frozen=True, slots=True)
class Block:
    """The rows of a long table that one page shows: the slice `rows` out of `count`."""

    number: int
    count: int

    @property
    def rows(self) -> slice:
        """The rows that are shown."""
        return slice(BLOCK_ROWS * (self.number - 1), min(BLOCK_ROWS * self.number, self.count))

    @property
    def all(self) -> list[Block]:
        """All blocks of the table."""
        return [Block(number, self.count) for number in range(1, -(-self.count // BLOCK_ROWS) + 1)]


def choose_block(request: Request, count: int) -> Block:
    """Return the block of a table of `count` rows selected by ``block`` in the URL, by default the first."""
    text = request.query_params.get("block", "")
    number = int(text) if text.isdecimal() and len(text) < 9 else 1
    return Block(number if 1 <= number <= -(-count // BLOCK_ROWS) else 1, count)


class Pages:
    """Renders the templates; `links` maps the address of each page in the menu to the key of its text.

    All values are escaped, including control characters; the filter ``key`` keeps those in texts read by scripts.
    """

    def __init__(self, token: str, links: dict[str, str]) -> None:
        self._token, self._links = token, links
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=jinja2.StrictUndefined,
            finalize=_finalize, trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._templates.filters |= {"key": _Key, "quote_path": quote_path}

    def render(self, request: Request, template: str, **values: Any) -> HTMLResponse:
        """Return a page; besides `values`, its template gets the texts `t` and the function `address` for links."""
        requested = request.query_params.get("lang")
        language = messages.choose_language(requested, request.headers.get("accept-language", ""))

        def address(path: str, **parameters: Any) -> str:
            chosen = parameters | ({"lang": requested} if requested else {})
            return f"{path}?{urlencode(chosen, errors='backslashreplace')}" if chosen else path

        other = {**dict(request.query_params), "lang": "en" if language == "zh" else "zh"}
        texts = messages.select(language)
        slice_name = partial(messages.translate_slice, texts=texts)
        note = partial(messages.translate_note, texts=texts)
        html = self._templates.get_template(template).render(
            t=texts, translate_slice=slice_name, translate_note=note, language=language, token=self._token,
            links=self._links, address=address, path=request.url.path,
            other_language=urlencode(other, errors="backslashreplace"), **values,
        )  # fmt: skip
        return HTMLResponse(html.encode(errors="backslashreplace"), headers=FRESH)


def respond_with_error(request: Request, sentence: str, status: int) -> StrictJSONResponse:
    """Return the sentence of an error in the language of the requesting page."""
    return StrictJSONResponse({"error": _translate_error(request, sentence)}, status)


def translate_state(request: Request, state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a background task, with its error in the language of the requesting page."""
    return state | {"error": _translate_error(request, state["error"])}


def _translate_error(request: Request, sentence: str) -> str:
    language = messages.choose_language(request.query_params.get("lang"), request.headers.get("accept-language", ""))
    return messages.translate_error(sentence, messages.select(language))


def respond_with_image(content: bytes | None, media_type: str = "image/webp") -> Response:
    """Return an image whose content never changes at its address; raise `HTTPException` if there is none."""
    if content is None:
        raise HTTPException(404, "This image cannot be shown.")
    return Response(content, media_type=media_type, headers=IMMUTABLE)


async def read_json(request: Request) -> dict[str, Any]:
    """Return the JSON object in a request body; raise `HTTPException` for anything else."""
    try:
        values = jsonio.loads(await read_body(request, MAX_BODY))
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise HTTPException(400, "Expected a JSON object.")
    return values


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body of a request; raise `HTTPException` for more than `limit` bytes."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > limit:
            raise HTTPException(413, f"A request may have at most {limit:,} bytes.")
    return bytes(content)
