"""`sightline serve`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from sightline.cli.output import print_line
from sightline.cli.sources import DeviceOption, TileOption
from sightline.serve.limits import (
    DEFAULT_GRACE,
    DEFAULT_RELOAD_INTERVAL,
    DEFAULT_UPLOAD_MB,
    LOG_BYTES,
    MEGABYTE,
    Limits,
)

_DEFAULTS = Limits()


def serve(
    model: Annotated[
        str | None, typer.Argument(help="A run, a bundle, its .zip or .onnx file, or an exported folder.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all interfaces.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 picks a free one.")] = 8000,
    models: Annotated[
        Path | None, typer.Option(help="Serve the models of a folder instead: NAME, or NAME/1, NAME/2 for versions.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model name for clients; default: the name of its run.")] = None,
    max_upload_mb: Annotated[
        int, typer.Option(min=1, metavar="MB", help="Maximum size of the body of a request.")
    ] = DEFAULT_UPLOAD_MB,
    max_inflight_mb: Annotated[
        int, typer.Option(min=1, metavar="MB", help="Maximum size of all bodies in flight; beyond it, 503.")
    ] = _DEFAULTS.body_bytes // MEGABYTE,
    max_requests: Annotated[
        int, typer.Option(min=1, help="Maximum requests in flight; beyond it, 503.")
    ] = _DEFAULTS.requests,
    decode_timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Maximum time to decode one image.")
    ] = _DEFAULTS.decode,
    request_timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Maximum time from the header to the end of the response.")
    ] = _DEFAULTS.request,
    idle_timeout: Annotated[
        float,
        typer.Option(
            min=0.1,
            metavar="SECONDS",
            help="How long a connection stays open without a request; more than the idle timeout of a proxy in front.",
        ),
    ] = _DEFAULTS.idle,
    threads: Annotated[int, typer.Option(min=0, help="Number of threads for a model; 0: one per core.")] = 0,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Maximum images in a batch; default: by the size of the images.")
    ] = None,
    max_wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long an image waits for others to share its batch.")
    ] = 0.0,
    tile: TileOption = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Worker processes; each loads the models and uses an equal share of the cores.")
    ] = 1,
    device: DeviceOption = None,
    reload_interval: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How often to check for changed models; 0: only at SIGHUP.")
    ] = DEFAULT_RELOAD_INTERVAL,
    grace: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Maximum time to finish requests after SIGTERM.")
    ] = DEFAULT_GRACE,
    ssl_certfile: Annotated[
        Path | None, typer.Option(help="PEM file of the certificate chain, for HTTPS; read again when it changes.")
    ] = None,
    ssl_keyfile: Annotated[
        Path | None, typer.Option(help="The private key of the certificate, if in another file.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="A file with the bearer token that requests must send; or set the variable SIGHTLINE_TOKEN."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="A name that requests may be addressed to; repeatable; default: any.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="An origin of web pages that may use the server; repeatable.")
    ] = None,
    log_format: Annotated[
        Literal["text", "json"] | None, typer.Option(help="Log each request to standard error, as text or JSON.")
    ] = None,
    log_features: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Log features and probabilities for `sightline watch`; with --models, a folder of logs.",
        ),
    ] = None,
    log_features_mb: Annotated[
        int, typer.Option(min=1, metavar="MB", help="Maximum size of each log; the oldest images are dropped.")
    ] = LOG_BYTES // MEGABYTE,
) -> None:
    """Serve predictions over HTTP until Ctrl-C or SIGTERM."""
    from sightline.serve.server import serve as run

    limits = Limits(
        requests=max_requests,
        body_bytes=max_inflight_mb * MEGABYTE,
        decode=decode_timeout,
        request=request_timeout,
        idle=idle_timeout,
    )
    max_bytes = max_upload_mb * MEGABYTE
    run(
        model, host, port, max_bytes=max_bytes, on_start=print_line,
        on_message=partial(print_line, stderr=True), models=models, name=name, limits=limits,
        threads=threads, batch_size=batch_size, max_wait=max_wait, tile=tile, workers=workers,
        device=device,
        reload_interval=reload_interval, grace=grace, ssl_certfile=ssl_certfile, ssl_keyfile=ssl_keyfile,
        token_file=token_file, allowed_hosts=allowed_host or (), cors_origins=cors_origin or (),
        log_format=log_format,
        log_features=log_features, log_features_bytes=log_features_mb * MEGABYTE,
    )  # fmt: skip
