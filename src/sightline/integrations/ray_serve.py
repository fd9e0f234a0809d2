"""A Ray Serve application whose replicas have the API of `sightline serve`.

``serve run sightline.integrations.ray_serve:build_app model=/models/cats.zip``, or in Python
``ray.serve.run(build_app({"model": "/models/cats.zip"}))``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sightline import process
from sightline._keras.imports import import_ray
from sightline.errors import UsageError, suggest
from sightline.serve.limits import DEFAULT_UPLOAD_MB, MEGABYTE

PURPOSE = "Ray Serve"
_ARGUMENTS = ("model", "name", "max_upload_mb", "token_file")


def build_app(arguments: Mapping[str, str]) -> Any:
    """Return a Ray Serve application; this is an application builder for ``serve run`` and its YAML files.

    Args:
        arguments: ``model``, the path of a run, a bundle, its ``.zip`` or ``.onnx`` file, or an exported folder, which
            all nodes can read. Optional: ``name``, the model's name for clients; ``max_upload_mb``, the maximum size of
            a request; ``token_file``, a file on the nodes with the token that requests need, by default the value of
            ``SIGHTLINE_TOKEN`` where the application is built, if it is set.

    Raises:
        UsageError: For unknown or missing arguments, or an invalid token.
        MissingExtraError: If Ray is not installed.

    Example:
        ```python
        import ray.serve
        from sightline.integrations.ray_serve import build_app

        ray.serve.run(build_app({"model": "/models/cats.zip"}))
        ```
    """
    return make_deployment(arguments).bind()


def make_deployment(arguments: Mapping[str, str]) -> Any:
    """Return the deployment of `build_app`, whose `options` set the replicas and their CPUs.

    A replica loads the model once, computes in as many threads as it has CPUs (at least one), and is ready after the
    first prediction. Images are predicted in batches, and decoded in separate processes.

    Args:
        arguments: As for `build_app`.
    """
    unknown = [name for name in arguments if name not in _ARGUMENTS]
    if unknown:
        raise UsageError(f"Ray Serve got the argument {unknown[0]!r}.{suggest(unknown[0], _ARGUMENTS)}")
    if "model" not in arguments:
        raise UsageError("Ray Serve needs a model: give its path as model=PATH.")
    _read_megabytes(arguments)
    serve = import_ray(PURPOSE, "ray.serve")
    from sightline.serve.access import read_token

    token = None if arguments.get("token_file") else read_token(None)  # replicas may have another environment

    def create() -> Any:  # Ray Serve requires a function, not just any callable
        return create_replica(arguments, token)

    # Requests wait in the replica, where they share batches and are refused if there are too many.
    return serve.deployment(serve.ingress(create)(), name="sightline", max_ongoing_requests=256)


def create_replica(arguments: Mapping[str, str], token: str | None = None) -> Any:
    """Return the ASGI application of a replica, in the process that Ray Serve started for it.

    Requests need the token from the ``token_file`` of the arguments, else from ``SIGHTLINE_TOKEN``, else `token`.
    """
    from sightline.api.loading import load
    from sightline.serve.access import Access, read_token
    from sightline.serve.app import create_app
    from sightline.serve.uploads import silence_form_reader

    ray = import_ray(PURPOSE)
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
    process.limit_cores(max(1, int(cpus)))
    token_file = arguments.get("token_file")
    silence_form_reader()
    return create_app(
        load(arguments["model"]),
        name=arguments.get("name"),
        max_bytes=_read_megabytes(arguments) * MEGABYTE,
        access=Access(read_token(Path(token_file) if token_file else None) or token),
        warm_up=True,
    )


def _read_megabytes(arguments: Mapping[str, str]) -> int:
    text = str(arguments.get("max_upload_mb", DEFAULT_UPLOAD_MB))
    if not text.isdecimal() or not 0 < int(text) < 10**6:
        raise UsageError(
            f"max_upload_mb is the maximum size of a request in MB, e.g. {DEFAULT_UPLOAD_MB}, not {text!r}."
        )
    return int(text)
