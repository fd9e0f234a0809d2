"""The server as a client sees it: a separate process, with requests over a socket."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from command import Command
from server_process import Server
from sightline import load
from sightline.inference import bundle
from small_bundles import make_bundle
from waiting import wait_until

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def server(trained: tuple[Path, Any]) -> Iterator[Server]:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": "/nowhere"}  # of another program
    with Server(trained[0], "--max-upload-mb", "1", env=environment) as running:
        yield running
        code, err = running.stop()
        assert code == 0
        assert "Traceback" not in err


def test_it_describes_its_model(server: Server, trained: tuple[Path, Any]) -> None:
    assert server.request("/health") == (200, {"status": "ok"})
    code, facts = server.request("/model")
    assert code == 200
    assert facts["classes"] == ["blue", "green", "red"]
    assert facts["weights_sha256"] == trained[1]["weights_sha256"]


def test_its_predictions_are_those_of_predict(server: Server, trained: tuple[Path, Any], colors: Path) -> None:
    """Many at once, so that they share batches."""
    paths = sorted(colors.rglob("*.png"))[::3]
    expected = load(trained[0]).predict(paths)
    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(lambda path: server.request("/predict?top=2", path.read_bytes()), paths))
    for (code, body), one in zip(responses, expected, strict=True):
        assert code == 200
        assert body["label"] == one.label
        assert body["probability"] == pytest.approx(one.probability, abs=1e-6)
        assert [c["label"] for c in body["top"]] == [c.label for c in one.top[:2]]
        assert "path" not in body


def test_a_gateway_may_pass_on_parameters_of_its_own(server: Server, colors: Path) -> None:
    image = next((colors / "red").iterdir()).read_bytes()
    for path in ("/predict?key=abc&top=1", "/explain?trace=1"):
        assert server.request(path, image)[0] == 200


def test_the_content_type_does_not_matter(server: Server, colors: Path) -> None:
    """`curl --data-binary` sends the content type of a form."""
    image = next((colors / "red").iterdir()).read_bytes()
    for kind in ("application/x-www-form-urlencoded", "application/octet-stream", "text/plain"):
        assert server.request("/predict", image, kind)[0] == 200


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_sends_files_as_a_form(server: Server, trained: tuple[Path, Any], colors: Path) -> None:
    paths = [next((colors / name).iterdir()) for name in ("red", "green")]
    options = [option for path in paths for option in ("-F", f"image=@{path}")]
    answer = json.loads(subprocess.check_output(["curl", "-s", *options, f"{server.address}/predict?top=1"]))
    expected = load(trained[0]).predict(paths)
    assert [(image["path"], image["label"]) for image in answer["predictions"]] == [
        (path.name, prediction.label) for path, prediction in zip(paths, expected, strict=True)
    ]
    assert answer["model"]["weights_sha256"] == trained[1]["weights_sha256"]


@pytest.mark.parametrize(
    ("path", "body", "kind", "code", "words"),
    [
        ("/predict", b"not an image", "image/png", 400, "cannot be read"),
        ("/predict", b"", "image/png", 400, "no body"),
        ("/predict?top=0", b"x", "image/png", 400, "1 to 3"),
        ("/predict?top=two", b"x", "image/png", 400, "'two'"),
        ("/predict?top=-1", b"x", "image/png", 400, "'-1'"),
        ("/predict?top=000", b"x", "image/png", 400, "1 to 3"),
        ("/predict?top=" + "9" * 5000, b"x", "image/png", 400, "cannot be read"),  # the image: it asks for all classes
        ("/predict?topk=3", b"x", "image/png", 400, "no query parameter 'topk' here. Did you mean 'top'?"),
        ("/explain?Class=red", b"x", "image/png", 400, "no query parameter 'Class' here. Did you mean 'class'?"),
        ("/predict", bytes(1_000_001), "image/png", 413, "1000000 bytes"),
        ("/predict", b"--x--", "multipart/mixed; boundary=x", 415, "send the bytes of an image"),
        ("/predict", None, "image/png", 405, "/predict takes POST, not GET: "),
        ("/elsewhere", None, "image/png", 404, "There is nothing at /elsewhere: "),
    ],
)
def test_bad_requests_are_explained(
    server: Server, path: str, body: bytes | None, kind: str, code: int, words: str
) -> None:
    status, payload = server.request(path, body, kind)
    assert status == code
    assert words in payload["error"]
    assert server.request("/health")[0] == 200


def exchange(server: Server, parts: Iterable[bytes]) -> bytes:
    """Send bytes to the server and return what it answers, which may come before all of them are sent."""
    host, port = server.address.removeprefix("http://").split(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=30) as client:
        with contextlib.suppress(ConnectionError):  # refused before all of it was sent
            for chunk in parts:
                client.sendall(chunk)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)
            while data := client.recv(1 << 16):
                received += data
    return received


@pytest.mark.parametrize(("path", "status"), [("/models", 200), ("?a=b", 200), ("/mod%65ls", 200), ("/x", 404)])
def test_a_whole_address_is_a_target_too(server: Server, path: str, status: int) -> None:
    """As a client sends it that takes the server for a proxy (RFC 9112, 3.2.2)."""
    with contextlib.closing(HTTPConnection(server.address.removeprefix("http://"))) as connection:
        connection.request("GET", server.address + path)
        assert connection.getresponse().status == status


def make_part(content: bytes) -> bytes:
    return b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n' + content + b"\r\n"


FORM_BYTES = 32 << 20
FORMS: dict[str, Callable[[], bytes]] = {  # each larger than the memory that it may take
    "500,000 parts": lambda: make_part(b"x") * 500_000 + b"--x--\r\n",
    "no final boundary": lambda: make_part(bytes(FORM_BYTES)),
    "part headers of 32 MB": lambda: b"--x\r\nX: " + b"y" * FORM_BYTES + b"\r\n\r\nx\r\n--x--\r\n",
    "nested": lambda: b"".join(
        b"--x\r\nContent-Type: multipart/mixed; boundary=%d\r\n\r\n--%d\r\n" % (i, i) for i in range(600_000)
    ),
    "64 MB": lambda: make_part(bytes(64 << 20)),
}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/PID/clear_refs exists on Linux only")
@pytest.mark.parametrize("form", FORMS)
def test_a_form_takes_no_more_memory_than_the_limit_of_its_body(server: Server, form: str) -> None:
    """The body is read to its end, so that the client gets the answer.

    Its length is not stated, as it would be refused for that.
    """
    status_file = Path(f"/proc/{server.process.pid}/status")

    def read_peak() -> int:
        return next(int(line.split()[1]) for line in status_file.read_text().splitlines() if line.startswith("VmHWM"))

    def send(body: bytes) -> bytes:
        head = HEAD.replace(b"Connection: close\r\n", b"Content-Type: multipart/form-data; boundary=x\r\n")
        head += b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body)
        return exchange(server, [head, body, b"\r\n0\r\n\r\n"])

    body = FORMS[form]()
    assert len(body) >= FORM_BYTES
    send(make_part(b"x") + b"--x--\r\n")  # the first form imports modules
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")  # the peak is the present size from here on
    before = read_peak()
    received = send(body)
    assert received.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 ")), received[:200]
    assert b"The form cannot be read" in received or b"The body has more than" in received
    assert read_peak() - before < 16 << 10
    assert server.request("/health")[0] == 200


@pytest.mark.parametrize(
    ("request_bytes", "words"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", b"Missing mandatory Host: header"),
        (b"GET /health\r\nX\r\n\r\n", b"illegal"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100_000, b"its header is too long"),
    ],
)
def test_what_is_not_http_is_refused_with_the_reason(server: Server, request_bytes: bytes, words: bytes) -> None:
    received = exchange(server, [request_bytes])
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"The request is not valid HTTP/1.1: " in received
    assert words in received
    assert b"bytearray" not in received


HEAD = b"POST /predict HTTP/1.1\r\nHost: test\r\nConnection: close\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
PACKED = gzip.compress(bytes(20_000_000), 1)
BOMB = b"%x\r\n%s\r\n0\r\n\r\n" % (len(PACKED), PACKED)


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ((HEAD + b"Content-Length: 1000\r\n\r\n", b"short"), b""),
        ((HEAD + b"Content-Length: 3\r\n\r\n", b"longer than stated"), b"400"),
        ((HEAD + b"Content-Length: -1\r\n\r\n", b"x"), b"400"),
        ((HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", b"x"), b"4"),
        ((HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", b"xx"), b"400"),
        ((CHUNKED, b"zz\r\nx\r\n"), b"400"),
        ((CHUNKED, *[b"8000\r\n" + bytes(0x8000) + b"\r\n"] * 100), b"413"),
        ((CHUNKED, *[b"1\r\nx\r\n"] * 20_000, b"0\r\n\r\n"), b"400"),
        ((HEAD.replace(b"test", b"[::") + b"Content-Type: multipart/x\r\nContent-Length: 1\r\n\r\n", b"x"), b"415"),
        ((HEAD + b"X: y\r\n" * 100_000,), b"4"),
        ((HEAD + b"X: " + b"y" * (1 << 20) + b"\r\n\r\n",), b"4"),
        ((HEAD + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n", b"\x1f\x8b\x08\0"), b"400"),
        ((CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"), BOMB), b"413"),
        ((HEAD[:20],), b""),
    ],
    ids=[
        "shorter than stated", "longer than stated", "negative length", "length of 5,000 digits", "two lengths",
        "not a chunk", "endless body", "many chunks", "a host that is none", "endless header",
        "a header of 1 MB", "a compressed body that is cut off", "one that unpacks to 20 MB", "half a line",
    ],
)  # fmt: skip
def test_hostile_requests_end_neither_the_server_nor_its_patience(
    server: Server, parts: tuple[bytes, ...], code: bytes
) -> None:
    """The fixture checks that none of them printed a traceback."""
    received = exchange(server, parts)
    if code and received:
        assert received.startswith(b"HTTP/1.1 " + code), received[:200]
    assert server.request("/health")[0] == 200


@pytest.mark.slow_with("zip", "onnx")
@pytest.mark.skipif(os.name == "nt", reason="Windows has no POSIX signals")
@pytest.mark.parametrize("form", ["bundle", "zip", "onnx"])
def test_a_bundle_is_served_in_every_form_until_a_signal(
    sightline: Command, trained: tuple[Path, Any], colors: Path, tmp_path: Path, form: str
) -> None:
    model = trained[0] / "bundle"
    if form == "zip":
        model = tmp_path / "m.zip"
        assert sightline("export", trained[0], "--to", "bundle", "--out", model).code == 0
    if form == "onnx":
        model = trained[0] / "bundle" / "model.onnx"
    image = next((colors / "red").iterdir())
    with Server(model) as running:
        assert running.request("/predict", image.read_bytes())[0] == 200
        code, err = running.stop(signal.SIGINT)
        assert code == 0
        assert err == ""


def test_requests_do_not_wait_for_the_reader_of_the_log(trained: tuple[Path, Any]) -> None:
    with Server(trained[0], "--log-format", "json") as running:
        for _ in range(12):  # more than a pipe holds
            assert running.request("/" + "a" * 10_000, timeout=20)[0] == 404
        code, err = running.stop()
    assert code == 0
    assert [json.loads(line).get("status") for line in err.splitlines()].count(404) == 12


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither SIGHUP nor such terminals")
def test_sighup_loads_the_model_again_until_its_terminal_closes(tmp_path: Path) -> None:
    """The server is the leader of the session of a terminal, as a shell is."""
    import fcntl
    import termios

    bundle.write_folder(make_bundle(1), tmp_path / "shapes")
    master, slave = os.openpty()

    def lead_session() -> None:
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` has it ignored

    with Server(
        tmp_path / "shapes", "--reload-interval", 0, start_new_session=True, preexec_fn=lead_session
    ) as running:
        os.close(slave)
        assert running.request("/model")[1]["weights_sha256"] == "1" * 64
        bundle.write_folder(make_bundle(2), tmp_path / "shapes")
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda: running.request("/model")[1]["weights_sha256"] == "2" * 64)
        os.close(master)
        assert running.wait() == (0, "")


def test_bad_use_gets_one_clear_message(
    sightline: Command, trained: tuple[Path, Any], colors: Path, tmp_path: Path
) -> None:
    with socket.socket() as busy_socket:
        busy_socket.bind(("127.0.0.1", 0))
        busy_socket.listen()
        result = sightline("serve", trained[0], "--port", busy_socket.getsockname()[1])
        assert (result.code, result.out) == (2, "")
        assert "Cannot listen on" in result.err
    result = sightline("serve", trained[0], "--host", "127。。0.1")
    assert (result.code, result.out) == (2, "")
    assert "Cannot listen on 127。。0.1:8000: that is not a host name." in result.err
    assert "There is no model" in sightline("serve", tmp_path / "none").err
    assert "The argument after --host is empty" in sightline("serve", trained[0], "--host", "").err
    for option, text in (("--grace", "inf"), ("--max-wait", "nan"), ("--request-timeout", "1e9")):
        result = sightline("serve", trained[0], option, text)
        assert (result.code, result.out) == (2, "")
        assert "expected a number of seconds, at most 1,000,000" in result.err
    for arguments in ((), (trained[0], "--models", tmp_path)):
        assert "either one model, or a folder of models" in sightline("serve", *arguments).err
    for folder, text in ((colors, f"`sightline train {colors}` trains a model"), (trained[0], "leave --models out")):
        result = sightline("serve", "--models", folder)
        assert (result.code, result.err.count(": ")) == (2, 2)  # one sentence, not one for each class folder
        assert text in result.err
    assert "leave --name out" in sightline("serve", "--models", tmp_path, "--name", "x").err
    (tmp_path / "cats").mkdir()
    result = sightline("serve", "--models", tmp_path)
    assert (result.code, result.out) == (2, "")
    assert f"{tmp_path / 'cats'} is not a model" in result.err
