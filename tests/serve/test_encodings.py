"""Bodies that clients have compressed: answered as if they had not, and within the limits of a body."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette")

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as ServerRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_client import Request, make_scope, send
from sightline.serve.admission import Admission, AdmissionMiddleware, read_body
from sightline.serve.encodings import CHUNK, MAX_MEMBERS, UnpackingMiddleware
from sightline.serve.limits import Limits
from sightline.serve.responses import make_error_response
from synthetic_images import encode_png

Convert = Callable[[bytes], bytes]
COMPRESSORS: dict[str, Convert] = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress}
IMAGE = encode_png(1, 3)
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
INFER = "/v2/models/shades/infer"
HEADER = "Inference-Header-Content-Length"
TENSOR = {"name": "pixels", "datatype": "UINT8", "shape": [2, 8, 8, 3]}
HEAD = json.dumps({"inputs": [TENSOR | {"parameters": {"binary_data_size": PIXELS.size}}]}).encode()
FORM = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a.png"\r\n\r\n%s\r\n--x--\r\n' % IMAGE


@pytest.mark.parametrize("encoding", COMPRESSORS)
@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/predict", IMAGE, {}),
        ("/predict", FORM, {"Content-Type": "multipart/form-data; boundary=x"}),
        ("/explain", IMAGE, {}),
        (INFER, json.dumps({"inputs": [TENSOR | {"data": PIXELS.tolist()}]}).encode(), {}),
        (INFER, HEAD + PIXELS.tobytes(), {HEADER: str(len(HEAD))}),
    ],
    ids=["image", "form", "heat map", "JSON tensor", "binary tensor"],
)
def test_a_compressed_body_gets_the_same_answer(path: str, body: bytes, headers: dict[str, str], encoding: str) -> None:
    packed = COMPRESSORS[encoding](body)
    encoding_headers = {"Content-Length": str(len(packed)), "Content-Encoding": encoding.upper()}
    plain, unpacked = send(Request(path, body, headers), Request(path, packed, headers | encoding_headers))
    assert plain.status in {200, 501}, plain.body  # a model in tests has no heat map
    assert (unpacked.status, unpacked.body) == (plain.status, plain.body)


def exchange(chunks: list[bytes], encoding: str, limits: Limits, max_bytes: int) -> tuple[int, Any, int]:
    """Send a body in `chunks`; return the status, the answer, which is the body's length, and most bytes in flight."""
    admission, most = Admission(max_bytes, limits), 0
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages[-1]["more_body"] = False
    sent: list[Any] = []

    async def answer(request: ServerRequest) -> JSONResponse:
        return JSONResponse(len(await read_body(request)))

    async def fail(_request: ServerRequest, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return make_error_response(error)

    async def receive() -> Any:
        nonlocal most
        most = max(most, admission.bytes)
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    async def take(message: Any) -> None:
        nonlocal most
        most = max(most, admission.bytes)
        sent.append(message)

    app = Starlette(
        routes=[Route("/", answer, methods=["POST"])],
        middleware=[Middleware(AdmissionMiddleware, admission), Middleware(UnpackingMiddleware, admission)],
        exception_handlers={HTTPException: fail},
    )
    scope = make_scope("/", headers={"content-encoding": encoding, "transfer-encoding": "chunked"})
    asyncio.run(app(scope, receive, take))
    assert (admission.requests, admission.bytes) == (0, 0), "nothing stays counted"
    return sent[0]["status"], json.loads(sent[1]["body"]), most


@pytest.mark.parametrize("encoding", COMPRESSORS)
@pytest.mark.parametrize("size", [1, CHUNK, 3 * CHUNK + 1], ids=["a byte", "a chunk", "more than three chunks"])
def test_a_body_is_unpacked_however_it_arrives(encoding: str, size: int) -> None:
    packed = COMPRESSORS[encoding](bytes(size))
    for step in (7, len(packed)):
        chunks = [packed[i : i + step] for i in range(0, len(packed), step)]
        status, answer, most = exchange(chunks, encoding, Limits(), max(size, len(packed)))
        assert (status, answer) == (200, size)
        assert most == size + len(packed), "both are counted as in flight"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda packed: packed[:-1], "is cut off"),
        (lambda _: b"", "is cut off"),
        (lambda packed: packed + b"x", ("goes on after its end", "is cut off")),
        (lambda packed: packed + PIXELS.tobytes(), ("goes on after its end", "is damaged")),
        (lambda packed: packed[:5] + bytes(9) + packed[14:], "is damaged"),
        (lambda packed: packed[:-6] + bytes(6), "is damaged"),
        (lambda _: IMAGE, "is damaged, or has another encoding"),
    ],
    ids=["cut off", "empty", "a stray byte", "stray bytes", "damaged", "a wrong checksum", "not compressed"],
)
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_damaged_data_is_explained(encoding: str, damage: Convert, words: str | tuple[str, str]) -> None:
    packed = damage(COMPRESSORS[encoding](PIXELS.tobytes()))
    status, answer, _ = exchange([packed], encoding, Limits(), 1 << 20)
    expected = words if isinstance(words, str) else words[encoding == "gzip"]
    assert status == 400
    assert answer["error"].startswith(f"The body cannot be unpacked: its {encoding} data {expected}")


@pytest.mark.parametrize("sizes", [[9, 0, 9, 0], [CHUNK, 1, CHUNK], [2 * CHUNK + 1, 0, CHUNK - 1, 3]])
def test_gzip_data_of_several_members_are_one_body(sizes: list[int]) -> None:
    """As `cat a.gz b.gz` and bgzip write them."""
    packed = b"".join(gzip.compress(bytes(size)) for size in sizes)
    for step in (7, 64, len(packed)):
        chunks = [packed[i : i + step] for i in range(0, len(packed), step)]
        assert exchange(chunks, "gzip", Limits(), sum(sizes) + len(packed))[:2] == (200, sum(sizes))
    assert "is cut off" in exchange([packed[:-1]], "gzip", Limits(), 1 << 24)[1]["error"]


def test_more_members_than_any_tool_writes_are_refused() -> None:
    status, answer, _ = exchange([gzip.compress(b"") * (MAX_MEMBERS + 1)], "gzip", Limits(), CHUNK)
    assert (status, f"more than {MAX_MEMBERS:,} members" in answer["error"]) == (400, True)


def test_what_unpacks_to_more_than_the_limit_is_refused_once_it_does() -> None:
    bomb = gzip.compress(bytes(100 * CHUNK))
    assert len(bomb) < CHUNK / 8
    status, answer, most = exchange([bomb], "gzip", Limits(), 2 * CHUNK)
    assert (status, f"more than {2 * CHUNK} bytes" in answer["error"]) == (413, True)
    assert most <= 2 * CHUNK + len(bomb)


def test_unpacked_bytes_need_room_among_those_in_flight() -> None:
    status, _, most = exchange([gzip.compress(bytes(CHUNK))], "gzip", Limits(body_bytes=CHUNK), CHUNK)
    assert (status, most < CHUNK) == (503, True)
