"""A server under a mix of good, slow and hostile clients: right answers, flat memory, no file left open."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hostile_clients import HALF_OPEN, HEAD, SLOW_IMAGE, open_connections, read_memory
from hostile_images import many_scans, png
from server_process import Server
from sightline.inference import bundle
from sightline.preprocessing import PreprocessingSpec
from small_bundles import make_bundle
from synthetic_images import encode_png
from waiting import wait_until

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc is that of Linux"),
]

GOOD_CLIENTS, HOSTILE_CLIENTS = 4, 8
ADDRESSES = ("/models/first", "/models/second", "/models/second/versions/1")
BOUNDARY = "boundary-of-the-form"
Answers = list[tuple[str, float]]


@dataclass(frozen=True)
class Client:
    """A client that behaves, and checks that each answer is that of `expected`."""

    server: Server
    images: list[bytes]
    expected: Answers

    def ask(self, choice: np.random.Generator) -> None:
        """Send some images in one of the forms, and check the answer."""
        forms: list[Callable[[str, list[bytes]], Answers]] = [
            self._send_bytes, self._send_form, self._send_json, self._send_infer, self._send_raw, self._send_slowly
        ]  # fmt: skip
        numbers = choice.integers(len(self.images), size=3).tolist()
        form, address = forms[choice.integers(len(forms))], ADDRESSES[choice.integers(len(ADDRESSES))]
        answers = form(address, [self.images[number] for number in numbers])
        for (label, probability), number in zip(answers, numbers, strict=False):  # some forms have one image
            assert label == self.expected[number][0]
            assert probability == pytest.approx(self.expected[number][1], abs=1e-6)
        assert answers

    def _send(self, path: str, body: bytes, kind: str) -> Any:
        code, answer = self.server.request(path, body, kind)
        assert code == 200, answer
        return answer

    def _send_bytes(self, address: str, images: list[bytes]) -> Answers:
        return [read(self._send(f"{address}/predict", images[0], "image/png"))]

    def _send_form(self, address: str, images: list[bytes]) -> Answers:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'.encode()
        body = b"".join(head + image + b"\r\n" for image in images) + f"--{BOUNDARY}--\r\n".encode()
        answer = self._send(f"{address}/predict", body, f"multipart/form-data; boundary={BOUNDARY}")
        return [read(prediction) for prediction in answer["predictions"]]

    def _send_json(self, address: str, images: list[bytes]) -> Answers:
        body = json.dumps({"images": [base64.b64encode(image).decode() for image in images]}).encode()
        return [
            read(prediction) for prediction in self._send(f"{address}/predict", body, "application/json")["predictions"]
        ]

    def _send_infer(self, address: str, images: list[bytes]) -> Answers:
        data = [base64.b64encode(image).decode() for image in images]
        inputs = [{"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": data}]
        answer = self._send(f"/v2{address}/infer", json.dumps({"inputs": inputs}).encode(), "application/json")
        outputs = {output["name"]: output["data"] for output in answer["outputs"]}
        rows = np.reshape(outputs["probabilities"], (len(images), -1))
        return list(zip(outputs["label"], rows.max(axis=1).tolist(), strict=True))

    def _send_raw(self, address: str, images: list[bytes]) -> Answers:
        head = b"POST /v2%s/infer HTTP/1.1\r\nHost: test\r\nInference-Header-Content-Length: 0\r\n"
        answer = self._exchange(head % address.encode(), images[0], pause=0)
        outputs = {output["name"]: output["data"] for output in answer["outputs"]}
        return [(outputs["label"][0], max(outputs["probabilities"]))]

    def _send_slowly(self, address: str, images: list[bytes]) -> Answers:
        """Send an image in three pieces, as a slow connection does, which the server waits for."""
        return [
            read(self._exchange(b"POST %s/predict HTTP/1.1\r\nHost: test\r\n" % address.encode(), images[0], pause=0.3))
        ]

    def _exchange(self, head: bytes, body: bytes, *, pause: float) -> Any:
        with self.server.connect() as client:
            content = head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            third = len(content) // 3
            for piece in (content[:third], content[third : 2 * third], content[2 * third :]):
                client.sendall(piece)
                time.sleep(pause)
            answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
        assert answer.startswith(b"HTTP/1.1 200"), answer[:500]
        return json.loads(answer.partition(b"\r\n\r\n")[2])


def read(prediction: dict[str, Any]) -> tuple[str, float]:
    return prediction["label"], prediction["probability"]


def attack(server: Server, contents: list[bytes], choice: np.random.Generator) -> None:
    """Send something hostile; some clients hang up before they are answered, and some never read the answer."""
    with contextlib.suppress(OSError), server.connect() as client:
        client.settimeout(float(choice.choice([0.01, 1.0])))
        client.sendall(contents[choice.integers(len(contents))])
        if choice.integers(4):
            client.recv(1 << 16)
        else:
            time.sleep(0.5)


def list_attacks(image: bytes) -> list[bytes]:
    """Return what hostile clients send."""
    bodies = [SLOW_IMAGE, png(7000, 7000), many_scans(64, 400), b"no image", image[:50], bytes(40_000_000)]
    form, infer, as_json = (
        b"POST /models/first/predict HTTP/1.1\r\nHost: test\r\nContent-Type: multipart/form-data; boundary=b\r\n",
        b"POST /v2/models/second/infer HTTP/1.1\r\nHost: test\r\n",
        b"POST /models/first/predict HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n",
    )
    head = HEAD.replace(b"/predict", b"/models/first/predict")
    requests = [
        *((head, body) for body in bodies),
        (form, b"--b\r\nContent-Disposition: form-data; name=" + b"x" * 1_000_000),
        (form, b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 20_000),
        (as_json, b"[" * 1_000_000),
        (as_json, b'{"images": ["' + b"A" * 3_000_001 + b'"]}'),
        (
            infer,
            b'{"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1000000, 1000000, 9, 9], "data": []}]}',
        ),
        (infer + b"Inference-Header-Content-Length: 99999999\r\n", b"{}"),
        (b"POST /models/%s/predict HTTP/1.1\r\nHost: test\r\n" % (b"x" * 4000), image),
    ]
    whole = [head + b"Content-Length: %d\r\n\r\n" % len(body) + body for head, body in requests]
    return [
        *HALF_OPEN,
        *whole,
        *(content[:-1] for content in whole),
        head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        head + b"X: " + b"x" * 100_000,
        b"GET /openapi.json HTTP/1.1\r\nHost: test\r\n\r\n" * 2000,  # whose answers are not read
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 100,  # the start of TLS
    ]


def count_files(server: Server) -> int:
    """Return how many files the server's process has open."""
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def measure_peak(server: Server, seconds: float) -> int:
    """Return the most memory that the server's process has within some seconds, in bytes."""
    end, peak = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        peak = max(peak, read_memory(server))
        time.sleep(0.2)
    return peak


def test_new_versions_take_no_more_memory(tmp_path: Path) -> None:
    """Each of 20 bundles of 30 MB replaces the one before."""
    spec, classes = PreprocessingSpec(224, 224), tuple(f"class {number}" for number in range(50))
    bundles = [make_bundle(seed, classes, spec) for seed in (1, 2)]
    bundle.write_folder(bundles[0], tmp_path / "model")
    with Server(tmp_path / "model", "--reload-interval", 0) as server:
        server.request("/predict", encode_png(0))
        first = read_memory(server)
        for turn in range(1, 21):
            bundle.write_folder(bundles[turn % 2], tmp_path / "model")
            server.process.send_signal(signal.SIGHUP)
            wait_for_weights(server, bundles[turn % 2].manifest.weights_sha256)
            server.request("/predict", encode_png(turn))
        wait_until(lambda: read_memory(server) - first < 64 << 20)
        assert server.stop() == (0, "")


def wait_for_weights(server: Server, weights: str) -> None:
    wait_until(lambda: server.request("/model")[1]["weights_sha256"] == weights)


def test_good_clients_are_answered_right_among_slow_and_hostile_ones(
    trained: tuple[Path, Any], colors: Path, tmp_path: Path
) -> None:
    """For SIGHTLINE_SOAK seconds (default 20), with two models.

    Memory stays flat, no file stays open, nothing is logged, and a signal still ends it.
    """
    seconds = float(os.environ.get("SIGHTLINE_SOAK", "20"))
    images = [path.read_bytes() for path in sorted(colors.rglob("*.png"))[::5]]
    for name in ("first", "second/1"):
        shutil.copytree(trained[0] / "bundle", tmp_path / "models" / name)
    with Server("--models", tmp_path / "models", "--decode-timeout", 1) as server:
        expected = [read(server.request("/models/first/predict", image)[1]) for image in images]
        client, attacks = Client(server, images, expected), list_attacks(images[0])
        files, end = count_files(server), time.monotonic() + seconds

        def repeat(act: Callable[[np.random.Generator], None], seed: int) -> int:
            choice, count = np.random.default_rng(seed), 0
            while time.monotonic() < end:
                act(choice)
                count += 1
            return count

        with ThreadPoolExecutor(GOOD_CLIENTS + HOSTILE_CLIENTS) as pool:
            good = [pool.submit(repeat, client.ask, seed) for seed in range(GOOD_CLIENTS)]
            bad = [
                pool.submit(repeat, lambda choice: attack(server, attacks, choice), seed)
                for seed in range(HOSTILE_CLIENTS)
            ]
            early = measure_peak(server, seconds / 2)
            assert all(task.result() > 10 for task in bad)
            counts = [task.result() for task in good]
        assert min(counts) > 10
        late = read_memory(server)
        assert late - early < 100 << 20, f"{sum(counts)} good requests, {early >> 20} MB, then {late >> 20} MB"
        wait_until(lambda: count_files(server) <= files + 4)  # a decoding process may just have been replaced
        with open_connections(server, 20):
            assert server.stop() == (0, "")
