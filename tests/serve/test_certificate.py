"""Encrypted connections: the certificate of files, and its renewal while the server runs."""

from __future__ import annotations

import logging
import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from sightline.api.classifier import Classifier
from sightline.errors import UsageError
from sightline.inference.predictor import FakePredictor
from sightline.preprocessing import PreprocessingSpec
from sightline.serve import connections
from sightline.serve.app import create_app
from sightline.serve.certificate import Certificate
from sightline.serve.connections import Server
from sightline.serve.limits import Limits
from sightline.serve.listening import Listener
from synthetic_images import encode_png

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes certificates, is missing")


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a certificate for localhost that it has signed itself, and its key."""
    certfile, keyfile = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", f"/CN={name}",
            "-addext", "subjectAltName=DNS:localhost", "-keyout", keyfile, "-out", certfile,
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return certfile, keyfile


def post_image(port: int, trusted: Path) -> bytes:
    """Send an image over TLS to a server whose certificate must be `trusted`, and return the answer."""
    context, image = ssl.create_default_context(cafile=str(trusted)), encode_png()
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        client.sendall(head % len(image) + image)
        received = b""
        while chunk := client.recv(1 << 16):
            received += chunk
    return received


def test_a_server_encrypts_and_takes_a_renewed_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CERTIFICATE_TICKS", 1)
    used = make_certificate(tmp_path, "used")
    old, new = tmp_path / "old.pem", make_certificate(tmp_path, "new")
    shutil.copy(used[0], old)
    app = create_app(Classifier(FakePredictor(("a", "b"), PreprocessingSpec(8, 8))), max_bytes=1 << 20)
    with Listener(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.limit = 10
        port = listener.getsockname()[1]
        server = Server(app, Limits(header=1.5), 10, Certificate(*used))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert post_image(port, old).startswith(b"HTTP/1.1 200 ")
            with socket.create_connection(("127.0.0.1", port), timeout=30) as silent:  # it never begins to speak TLS
                assert silent.recv(1) == b""
            listener.limit = 0
            with socket.create_connection(("127.0.0.1", port), timeout=30) as refused:
                assert refused.recv(1) == b"", "closed without an answer that is not TLS"
            listener.limit = 10
            for source, target in zip(new, used, strict=True):
                shutil.copy(source, target)
            for _ in range(600):
                try:
                    assert post_image(port, new[0]).startswith(b"HTTP/1.1 200 ")
                    break
                except ssl.SSLCertVerificationError:
                    threading.Event().wait(0.05)
            else:
                pytest.fail("The new certificate is not used.")
        finally:
            server.handle_exit(15, None)
            thread.join(30)
    assert not thread.is_alive()


def test_files_that_cannot_be_used_are_refused_at_first_and_keep_the_old_one_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certfile, keyfile = make_certificate(tmp_path, "used")
    _, other_key = make_certificate(tmp_path, "other")
    (tmp_path / "text").write_text("no certificate")
    locked = tmp_path / "locked.key"
    subprocess.run(["openssl", "ec", "-aes256", "-passout", "pass:x", "-in", keyfile, "-out", locked], check=True)
    for files, words in (
        ((tmp_path / "none",), "none: No such file"),
        ((certfile, tmp_path / "none"), "none: No such file"),
        ((tmp_path / "text",), "text has no certificate"),
        ((keyfile, certfile), "used.key has no certificate"),
        ((certfile,), "used.pem has no private key"),
        ((certfile, locked), "locked.key has a password"),
        ((certfile, other_key), "key values mismatch"),
    ):
        with pytest.raises(UsageError, match=rf"cannot be used: .*{words}.* Expected PEM files"):
            Certificate(*files)
    certificate = Certificate(certfile, keyfile)
    shutil.copy(other_key, keyfile)
    with caplog.at_level(logging.INFO, "sightline.serve"):
        certificate.refresh()
        certificate.refresh()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "The server keeps the old one." in record.message


def test_a_renewed_certificate_is_read_once_its_permissions_allow_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    certfile, keyfile = make_certificate(tmp_path, "used")
    certificate = Certificate(certfile, keyfile)
    shutil.copy(make_certificate(tmp_path, "new")[0], certfile)
    shutil.copy(tmp_path / "new.key", keyfile)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with caplog.at_level(logging.INFO, "sightline.serve"):
        with monkeypatch.context() as patch:
            patch.setattr(ssl.SSLContext, "load_cert_chain", refuse)  # root, who may run the tests, reads everything
            certificate.refresh()
        keyfile.chmod(0o640)
        certificate.refresh()
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.INFO]
