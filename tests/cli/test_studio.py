"""`sightline studio`, as its user starts it."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from command import Command
from sightline import Run
from sightline.studio.contents import open_studio
from sightline.studio.network import find_address
from sightline.studio.query import Query


def test_a_run_is_shown_with_its_splits_and_predictions(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run = Run(trained[0])
    with open_studio(run, tmp_path / "fixes.jsonl") as studio:
        library = studio.library
        for split in ("validation", "test"):
            ids = library.list_ids(Query(split=split))
            rows = library.describe(ids)
            right = sum(row["predicted"] == row["label"] for row in rows)
            metrics = getattr(run, split)
            assert (len(rows), right / len(rows)) == (metrics.count, pytest.approx(metrics.accuracy))
        train = library.describe(library.list_ids(Query(split="train")))
        assert {row["predicted"] for row in train} == {None}, "not evaluated on what it learned"
        assert not library.can_move, "the source has no splits"
        least = library.describe(library.list_ids(Query(sort="confidence"))[:2])
        assert least[0]["confidence"] <= least[1]["confidence"]


def test_the_command_prints_its_address_serves_and_ends_with_0(colors: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sightline", "studio", str(colors)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{address}/state", timeout=30) as response:  # noqa: S310  # our own server
            assert json.load(response)["counts"]["label"] == {"blue": 40, "green": 40, "red": 40}
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert list(tmp_path.iterdir()) == [], "nothing is written without a correction"


@pytest.mark.slow
@pytest.mark.parametrize("is_encrypted", [False, True])
def test_other_devices_open_the_address_that_is_printed(colors: Path, tmp_path: Path, *, is_encrypted: bool) -> None:
    command = [sys.executable, "-m", "sightline", "studio", str(colors), "--host", "0.0.0.0"]  # noqa: S104
    context = ssl.create_default_context()
    if is_encrypted:
        name = ["-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        files = ["-keyout", "key.pem", "-out", "cert.pem"]
        make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", *name, *files]
        subprocess.run(make, cwd=tmp_path, check=True, capture_output=True)
        context.load_verify_locations(tmp_path / "cert.pem")
        command += ["--ssl-certfile", "cert.pem", "--ssl-keyfile", "key.pem", "--allowed-host", "localhost"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("https://localhost:" if is_encrypted else "http://127.0.0.1:")
        if not is_encrypted:
            assert process.stdout.readline().startswith(f"http://{find_address()}:")
        assert set(process.stdout.readline().strip()) <= set("▀▄█"), "the code"
        place = address.partition("/?")[0]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{place}/state", timeout=30, context=context)  # noqa: S310  # our own server
        with urllib.request.urlopen(address, timeout=30, context=context) as response:  # noqa: S310
            cookie = response.headers["set-cookie"]
        assert ("; Secure" in cookie) == is_encrypted
        request = urllib.request.Request(f"{place}/state", headers={"Cookie": cookie.partition(";")[0]})  # noqa: S310
        with urllib.request.urlopen(request, timeout=30, context=context) as response:  # noqa: S310
            assert json.load(response)["counts"]["split"] == {}
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_what_cannot_be_shown_is_refused(
    sightline: Command, trained: tuple[Path, dict[str, Any]], colors: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, words in (
            ((tmp_path / "none",), "There is no folder"),
            ((trained[0], "--set", "data.class_level=2"), "which a run already records"),
            ((colors, "--compare", trained[0]), "--compare compares a run with another"),
            ((trained[0], "--compare", colors), "is not a run"),
            ((colors, "--port", port), f"Cannot listen on 127.0.0.1:{port}: Address already in use."),
            ((colors, "--host", "127。。0.1"), "Cannot listen on 127。。0.1:0: that is not a host name."),
            ((colors, "--patch", colors), "The patch"),
        ):
            result = sightline("studio", *arguments)
            assert (result.code, result.out) == (2, ""), arguments
            assert words in result.err
