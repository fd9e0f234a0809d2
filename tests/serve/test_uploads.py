"""Images in every form that a request may have: their predictions, and what is refused, over ASGI."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import tempfile
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from asgi_client import exchange, make_scope
from sightline.api.classifier import Classifier
from sightline.inference.predictor import FakePredictor
from sightline.preprocessing import PreprocessingSpec
from synthetic_images import encode_png

pytest.importorskip("starlette")
pytest.importorskip("python_multipart")

FILES = [encode_png(0, 0), encode_png(1, 3), encode_png(2, 1)]
BASE64 = [base64.b64encode(file).decode() for file in FILES]
FORM = "multipart/form-data; boundary=x"
URL_ENCODED = "application/x-www-form-urlencoded"
MODEL = {"name": "animals", "version": "1", "weights_sha256": None}
Answer = tuple[int, Any]


def make_classifier() -> Classifier:
    return Classifier(FakePredictor(("cat", "dog", "owl"), PreprocessingSpec(4, 6)))


def make_part(content: bytes, disposition: str = 'name="image"; filename="a.png"') -> bytes:
    return f"--x\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + content + b"\r\n"


def make_form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--x--\r\n"


def send(*requests: tuple[bytes | Sequence[bytes], str], query: str = "", max_bytes: int = 1 << 20) -> list[Answer]:
    """Send bodies, whole or in chunks, with their types to ``POST /predict``; nothing may be in flight afterwards."""
    from sightline.serve.app import create_app

    async def run() -> list[Answer]:
        app = create_app(make_classifier(), max_bytes=max_bytes, name="animals")
        async with app.router.lifespan_context(app):
            answers = [
                await post(app, iterate([body] if isinstance(body, bytes) else body), kind, query)
                for body, kind in requests
            ]
        assert (app.state.admission.requests, app.state.admission.bytes) == (0, 0)
        return answers

    return asyncio.run(run())


async def iterate(chunks: Sequence[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def post(app: Any, chunks: AsyncIterator[bytes], kind: str, query: str) -> Answer:
    answer = await exchange(app, make_scope("/predict", query, {"content-type": kind}), chunks)
    return answer.status, answer.json


def describe(top: int = 5) -> list[dict[str, Any]]:
    """Return what `predict` says about each of `FILES`, without its path."""
    described = []
    for prediction in make_classifier().predict(FILES, top=3):
        content = prediction.to_dict()
        described.append({**content, "top": content["top"][:top]})
        del described[-1]["path"]
    return described


def test_every_form_of_an_image_gets_the_answer_of_predict() -> None:
    first, *_ = expected = describe()
    names = ["a.png", "ein Büro.png", ""]
    form = make_form(
        make_part(FILES[0]),
        make_part(FILES[1], f'name=file; filename="{names[1]}"'),
        make_part(FILES[2], 'name="image"; filename=""'),
    )
    answers = send(
        (FILES[0], "image/png"),
        (json.dumps({"image": BASE64[0]}).encode(), "application/json"),
        (json.dumps({"image": f"data:image/png;base64,{BASE64[0]}"}).encode(), "Application/JSON; charset=utf-8"),
        (json.dumps({"images": BASE64}).encode(), "application/json"),
        (form, FORM),
        (form, "Multipart/Form-Data; boundary=x"),
        ([form[i : i + 1] for i in range(len(form))], FORM),
    )
    assert answers[:3] == [(200, first | {"model": MODEL})] * 3
    assert answers[3] == (200, {"predictions": expected, "model": MODEL})
    named = [{"path": name} | prediction for name, prediction in zip(names, expected, strict=True)]
    assert answers[4:] == [(200, {"predictions": named, "model": MODEL})] * 3


def test_one_image_in_a_list_is_answered_by_a_list() -> None:
    (prediction, *_) = describe(top=1)
    answers = send(
        (make_form(make_part(FILES[0])), FORM),
        (json.dumps({"images": BASE64[:1]}).encode(), "application/json"),
        query="top=1",
    )
    assert answers == [
        (200, {"predictions": [{"path": "a.png"} | prediction], "model": MODEL}),
        (200, {"predictions": [prediction], "model": MODEL}),
    ]


def test_the_largest_list_of_data_addresses_is_not_too_much() -> None:
    from sightline.serve.uploads import _parse_json

    body = json.dumps({"images": ["data:image/png;base64,AAAA"] * 1024}).encode()
    assert _parse_json(body).files == [bytes(3)] * 1024


def test_an_unreadable_image_does_not_keep_the_others_from_their_predictions() -> None:
    expected = describe()
    (status, answer), (json_status, json_answer) = send(
        (make_form(*map(make_part, [FILES[0], b"not an image", FILES[2], b""])), FORM),
        (json.dumps({"images": [BASE64[0], "AAEC"]}).encode(), "application/json"),
    )
    assert status == json_status == 200
    assert answer["predictions"] == [
        {"path": "a.png"} | expected[0],
        {"path": "a.png", "error": "not an image"},
        {"path": "a.png"} | expected[2],
        {"path": "a.png", "error": "empty file"},
    ]
    assert json_answer["predictions"] == [expected[0], {"error": "not an image"}]


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (b"{", "application/json", 400, "The request is not JSON"),
        (b"[" * 100_000, "application/json", 400, "The request is not JSON"),
        (b'{"images": [%s]}' % b",".join([b"{}"] * 9), "application/json", 400, "one field, 'image' or 'images'"),
        (b'{"images": [%s]}' % b",".join([b"0"] * 3000), "application/json", 400, "at most 1024 images"),
        (FILES[0], "application/json", 400, "The request is not JSON"),
        (b"[]", "application/json", 400, "one field, 'image' or 'images'"),
        (b'{"image": "", "images": []}', "application/json", 400, "one field, 'image' or 'images'"),
        (b'{"file": ""}', "application/json", 400, "one field, 'image' or 'images'"),
        (b'{"image": 1}', "application/json", 400, "The field 'image' is not the base64 of an image file."),
        (b'{"image": "&"}', "application/json", 400, "Image 0 is not base64: expected"),
        (b'{"image": "AAEC"}', "application/json", 400, "The image cannot be read: not an image."),
        (b'{"images": []}', "application/json", 400, "The field 'images' is not a list of one or more strings"),
        (b'{"images": "AAAA"}', "application/json", 400, "The field 'images' is not a list of one or more strings"),
        (b'{"images": ["AAAA", "\\ud800"]}', "application/json", 400, "Image 1 is not base64: expected"),
        (json.dumps({"images": ["AAAA"] * 1025}).encode(), "application/json", 400, "1025 images, but may have at"),
        (make_form(make_part(FILES[0])), "multipart/form-data", 400, "Missing boundary"),
        (make_form(make_part(FILES[0])), "multipart/mixed; boundary=x", 415, "The body is multipart/mixed"),
        (make_form(), FORM, 400, "The form "),
        (b"--y--", FORM, 400, "The form "),
        (make_form(make_part(FILES[0], 'filename="a.png"')), FORM, 400, '"name" must be provided'),
        (make_form(make_part(b"a.png", 'name="image"')), FORM, 400, "'image' of the form is not a file"),
        (make_form(make_part(FILES[0]), make_part(b"x", "name=top")), FORM, 400, "'top' of the form is not a file"),
        (make_form(*[make_part(b"")] * 1025), FORM, 400, "Too many files. Maximum number of files is 1024."),
        (b"--x\r\nX: " + b"y" * 100_000, FORM, 400, "The form cannot be read"),
        (make_form(make_part(bytes(1 << 20))), FORM, 413, "more than 1048576 bytes"),
        (b"", FORM, 400, "The form "),
        (make_form(make_part(FILES[0])), f"{FORM}; charset=undefined", 415, "'undefined': send UTF-8"),
        (make_form(make_part(b"a-aa", "name=a-")), f"{FORM}; charset=Punycode", 415, "'Punycode': send UTF-8"),
        (make_form(make_part(FILES[0]), make_part(FILES[1]))[:-20], FORM, 400, "its last boundary is missing"),
        (b"--x\r\nX\xc3: y\r\n\r\n--x--", FORM, 400, "The form cannot be read"),
        (FILES[0].replace(b"\n", b""), URL_ENCODED, 400, "With curl, send a file with --data-binary"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_explained_and_not_logged(
    body: bytes, kind: str, status: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    from sightline.serve.uploads import silence_form_reader

    logger = logging.getLogger("python_multipart")
    level = logger.level
    silence_form_reader()
    try:
        ((code, answer),) = send((body, kind))
    finally:
        logger.setLevel(level)
    assert code == status
    assert words in answer["error"]
    assert [record for record in caplog.records if record.levelname != "INFO"] == []


@pytest.mark.parametrize("charset", ["UTF-8", "us-ascii", "ISO-8859-1", "utf8"])
def test_a_form_may_state_a_usual_charset(charset: str) -> None:
    ((status, answer),) = send((make_form(make_part(FILES[0])), f"{FORM}; charset={charset}"))
    assert (status, answer["predictions"]) == (200, [{"path": "a.png"} | describe()[0]])


def test_files_of_a_form_are_never_written_to_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> None:
        pytest.fail("a temporary file was opened")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", fail)
    large = FILES[0] + bytes(3 << 20)  # beyond 1 MiB, Starlette would open one
    ((status, answer),) = send((make_form(make_part(large)), FORM), max_bytes=4 << 20)
    assert (status, len(answer["predictions"])) == (200, 1)


@pytest.mark.parametrize("kind", ["Multipart/Mixed", " MULTIPART/RELATED"])
def test_other_kinds_of_multipart_are_refused_unread(kind: str) -> None:
    from sightline.serve.app import create_app

    async def unread() -> AsyncIterator[bytes]:
        pytest.fail("the body was read")
        yield b""

    async def run() -> Answer:
        app = create_app(make_classifier(), max_bytes=1 << 20)
        async with app.router.lifespan_context(app):
            return await post(app, unread(), kind, "")

    status, answer = asyncio.run(run())
    assert status == 415
    assert "send the bytes of an image, or a form" in answer["error"]
