"""An S3 server on the loopback interface, for slow tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

import fsspec
import pytest


@contextmanager
def start_bucket() -> Iterator[Any]:
    """Start a server with an empty ``s3://bucket``, for this process and its child processes, and yield a client."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        # Another server in this process would share its content with this one.
        urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST"), timeout=10).close()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a",
                                "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}.items():  # fmt: skip
                patch.setenv(name, value)
            fsspec.get_filesystem_class("s3").clear_instance_cache()  # may have clients of another server
            client = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
            client.mkdir("bucket")
            yield client
    finally:
        server.stop()
