"""The Ray Serve application answers, on loopback, as the server of this package does."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import sightline as sl
import small_bundles
from asgi_client import Request, call
from ray_nodes import start_nodes
from sightline._keras.imports import import_ray
from sightline.distributed import ray_cluster
from sightline.errors import UsageError
from sightline.inference import bundle
from sightline.integrations import ray_serve
from sightline.serve.app import create_app
from synthetic_images import encode_png

try:
    import ray
except ImportError:
    ray = None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give its path as model=PATH"),
        ({"model": "a.zip", "modell": "b"}, r"got the argument 'modell'.* mean 'model'"),
        ({"model": "a.zip", "max_upload_mb": "many"}, "maximum size of a request in MB, e.g. 32, not 'many'"),
        ({"model": "a.zip", "max_upload_mb": "0"}, "not '0'"),
    ],
    ids=range(4),
)
def test_wrong_arguments_are_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ray_serve.build_app(arguments)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(ray is None, reason="Ray is not installed: make test-ray")
class TestReplicas:
    @pytest.mark.parametrize("prefix", ["/", "/cats"])
    def test_they_answer_as_the_server(self, tmp_path: Path, prefix: str) -> None:
        bundle.write(small_bundles.make_bundle(4), model := tmp_path / "cats.zip")
        (tmp_path / "token").write_text("secret\n")
        arguments = {"model": str(model), "token_file": str(tmp_path / "token"), "max_upload_mb": "1"}
        requests = make_requests()
        with run_application(arguments, prefix) as address:
            answers = [send(address + request.path, request) for request in requests for _ in range(3)]
            assert send(f"{address}/predict", Request("/predict", encode_png(0)))[0] == 401
        expected = asyncio.run(answer_here(model, requests))
        assert [status for status, _ in expected] == [200, 200, 200, 200, 400, 413]
        assert answers == [answer for answer in expected for _ in range(3)]


def make_requests() -> list[Request]:
    token = {"authorization": "Bearer secret"}
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": list(range(192))}
    body = json.dumps({"inputs": [tensor]}).encode()
    return [
        Request("/model", headers=token),
        Request("/predict", encode_png(1), token),
        Request("/explain", encode_png(2), token),
        Request("/v2/models/cats/infer", body, {**token, "content-type": "application/json"}),
        Request("/predict", b"\x89PNG\r\n\x1a\n", token),
        Request("/predict", bytes(2_000_000), token),
    ]


async def answer_here(model: Path, requests: list[Request]) -> list[tuple[int, Any]]:
    app = create_app(sl.load(model), max_bytes=10**6)
    async with app.router.lifespan_context(app):
        answers = [await call(app, request._replace(headers=with_length(request))) for request in requests]
    return [(answer.status, parse(answer.headers.get("content-type", ""), answer.body)) for answer in answers]


def with_length(request: Request) -> dict[str, str]:
    length = {} if request.body is None else {"content-length": str(len(request.body))}
    return {**request.headers, **length}


def parse(content_type: str, body: str) -> Any:
    return json.loads(body) if content_type.startswith("application/json") else body


def send(address: str, request: Request) -> tuple[int, Any]:
    message = urllib.request.Request(address, request.body, dict(request.headers))  # noqa: S310  # loopback
    try:
        with urllib.request.urlopen(message, timeout=60) as response:  # noqa: S310
            status, headers, body = response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        status, headers, body = error.code, error.headers, error.read()
    return status, parse(headers.get("content-type", ""), body.decode())


@contextmanager
def run_application(arguments: dict[str, str], prefix: str) -> Iterator[str]:
    """Run two replicas on two nodes; yield the address of the application, without a final slash."""
    serve = import_ray("The test", "ray.serve")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with start_nodes(1, 1) as cluster, ray_cluster.connect(cluster.address):
        serve.start("HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        deployment = ray_serve.make_deployment(arguments).options(num_replicas=2)
        serve.run(deployment.bind(), route_prefix=prefix)
        try:
            yield f"http://127.0.0.1:{port}{prefix.rstrip('/')}"
        finally:
            serve.shutdown()
