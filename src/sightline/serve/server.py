"""Run the HTTP server."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sightline import _io, process
from sightline.errors import UsageError, require
from sightline.serve.limits import DEFAULT_GRACE, DEFAULT_RELOAD_INTERVAL, LOG_BYTES, MAX_SECONDS, Limits

if TYPE_CHECKING:
    from sightline.inference.device_choice import Device
    from sightline.serve.access import Access
    from sightline.serve.batcher import Batching
    from sightline.serve.listening import Listener
    from sightline.serve.model_folder import LoadOptions, StoredModel


@dataclass(frozen=True, slots=True)
class Settings:
    """What a server serves and how, from the arguments of `serve`; pickled for worker processes."""

    model: Path | str | None
    models: Path | None
    name: str | None
    max_bytes: int
    limits: Limits
    options: LoadOptions
    batching: Batching
    access: Access
    reload_interval: float
    grace: float
    ssl_certfile: Path | None
    ssl_keyfile: Path | None
    log_format: Literal["text", "json"] | None
    log_features: Path | None
    log_features_bytes: int


def serve(  # noqa: PLR0913  # one keyword argument for each option of the command
    model: Path | str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    max_bytes: int,
    on_start: Callable[[str], None],
    on_message: Callable[[str], None] = print,
    models: Path | None = None,
    name: str | None = None,
    limits: Limits | None = None,
    threads: int = 0,
    batch_size: int | None = None,
    max_wait: float = 0.0,
    tile: float | None = None,
    workers: int = 1,
    device: Device | None = None,
    reload_interval: float = DEFAULT_RELOAD_INTERVAL,
    grace: float = DEFAULT_GRACE,
    ssl_certfile: Path | None = None,
    ssl_keyfile: Path | None = None,
    token_file: Path | None = None,
    allowed_hosts: Sequence[str] = (),
    cors_origins: Sequence[str] = (),
    log_format: Literal["text", "json"] | None = None,
    log_features: Path | None = None,
    log_features_bytes: int = LOG_BYTES,
) -> None:
    """Serve `model` (a run, a bundle, its zip or its ``.onnx``) or the models of a folder, until a signal stops it.

    Bodies may have up to `max_bytes` bytes; `limits` apply to requests and connections. `on_start` is called with the
    URL, `on_message` with the device that ``auto`` chose; port 0 selects a free port. `name` is the model's name for
    clients, by default the name of its run or file.

    `models` is a folder of models in place of `model`: see `model_folder.list_folder`. A model computes in `threads`
    threads (0: one for each core), in batches of up to `batch_size` images (None: see `runner.choose_batch_size`); the
    first image of a batch waits for others for at most `max_wait` seconds. `tile` is the scale at which masks are
    predicted in tiles, 0 for none, None for each model's own scale. `device` is where bundles run, as in `load`.
    Models that change on disk are loaded again: the server checks every `reload_interval` seconds (0: never) and, in
    the command line's own process, at SIGHUP.

    `workers` is the number of processes. With more than one, each loads the models and gets an equal part of the cores
    and of the `limits`, see `workers.run_workers`.

    Connections are encrypted with the certificate chain in the PEM file `ssl_certfile` and its key in `ssl_keyfile`.

    Requests need the token in `token_file` or the environment variable `SIGHTLINE_TOKEN`, if there is one, and a Host
    among `allowed_hosts`, if any; scripts of web pages of `cors_origins` may send them. With a `log_format`, each is
    logged to standard error; with "json", all other logs are in JSON as well. Requests are traced if OpenTelemetry is
    installed and the variables ``OTEL_*`` ask for it, see `tracing.start_tracing`. The outputs computed for each image
    are logged to the file `log_features`, which takes at most `log_features_bytes` bytes with its older files, see
    `inference.feature_log`; with `models`, `log_features` is a folder with a log for each, see `feature_logs`.

    At the first SIGINT or SIGTERM, the server is no longer ready and refuses new requests. It returns when those in
    flight have been answered, at the latest after `grace` seconds; at the second signal, it returns at once. A SIGTERM
    during the loading of models ends the command line's own process at once, with exit code 0.

    Raises `ModelError` if a model cannot be used; `UsageError` if the address cannot be bound, the token or certificate
    cannot be read, a host, an origin, a time or the name is invalid, or an option needs one worker; `ProcessError` if a
    worker does not start; `MissingExtraError` if the packages of the extra are not installed; `OutputError` if the
    feature log cannot be written.
    """
    if process.is_claimed():  # before importing prometheus_client, which would use the folder of another program
        for variable in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
            os.environ.pop(variable, None)
    for package in ("starlette", "uvicorn", "prometheus_client", "python_multipart"):
        require(package, "Serving")
    limits = limits or Limits()
    _check_seconds({
        "decode-timeout": limits.decode, "request-timeout": limits.request, "idle-timeout": limits.idle,
        "max-wait": max_wait, "reload-interval": reload_interval, "grace": grace,
    })  # fmt: skip
    requested = handle_signals()  # before imports that take seconds
    from sightline.serve.access import Access, read_token
    from sightline.serve.batcher import Batching
    from sightline.serve.listening import BACKLOG, Listener, bind
    from sightline.serve.model_folder import LoadOptions
    from sightline.serve.workers import check_options, run_workers

    settings = Settings(
        model, models, name, max_bytes, limits, LoadOptions(threads, device, tile),
        Batching(batch_size, max_wait), Access(read_token(token_file), tuple(allowed_hosts), tuple(cors_origins)),
        reload_interval, grace, ssl_certfile, ssl_keyfile, log_format, log_features, log_features_bytes,
    )  # fmt: skip
    if not host:  # the system would bind to all interfaces
        raise UsageError("--host is empty: give an address, such as 127.0.0.1, or 0.0.0.0 for all interfaces.")
    if workers > 1:
        check_options(settings)
        bind(Listener, host, port).close()  # fails if another server with several workers uses the port
    with bind(Listener, host, port, is_shared=workers > 1) as listener:
        scheme = "http" if ssl_certfile is None else "https"
        address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        if workers == 1:
            listener.listen(BACKLOG)  # from now on, connections wait until the server starts
            run(settings, listener, requested, on_message, on_start=lambda: on_start(address))
        else:
            run_workers(settings, listener, workers, requested, on_message, on_start=lambda: on_start(address))


def run(
    settings: Settings,
    listener: Listener,
    requested: asyncio.Event,
    on_message: Callable[[str], None],
    *,
    on_start: Callable[[], None] = lambda: None,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve the connections of a socket in this process until a signal, then close the socket.

    When `requested` is set, changed models are loaded at once. `on_start` is called when the models are loaded,
    `on_ready` when connections are accepted.
    """
    from sightline.serve.app import create_app
    from sightline.serve.certificate import read_certificate
    from sightline.serve.connections import Server
    from sightline.serve.feature_logs import FeatureLogs
    from sightline.serve.listening import limit_connections
    from sightline.serve.log_stream import write_stderr_in_thread
    from sightline.serve.observing import set_log_format
    from sightline.serve.reloading import Reloader
    from sightline.serve.tracing import start_tracing
    from sightline.serve.uploads import silence_form_reader

    certificate = read_certificate(settings.ssl_certfile, settings.ssl_keyfile)
    list_models = _choose_models(settings.model, settings.models, settings.name)
    reloader = Reloader(list_models, settings.options, settings.reload_interval, requested)
    served = reloader.load_all()
    if settings.options.device == "auto":
        for entry in served:
            on_message(f"{entry.name}: {entry.classifier.explain_device()}")
    listener.limit = limit_connections(settings.limits.connections)
    listener.keep_spare()
    feature_logs = None
    if settings.log_features is not None:
        path, is_folder = _io.output_path(settings.log_features), settings.models is not None
        feature_logs = FeatureLogs(path, settings.log_features_bytes, is_folder=is_folder)
    app = create_app(
        served,
        max_bytes=settings.max_bytes,
        limits=settings.limits,
        batching=settings.batching,
        warm_up=True,
        access=settings.access,
        log_format=settings.log_format,
        tracing=start_tracing(),
        feature_logs=feature_logs,
        reloader=reloader,
    )
    del served  # lets replaced models be freed
    silence_form_reader()
    with write_stderr_in_thread(), set_log_format(settings.log_format):
        on_start()
        Server(app, settings.limits, settings.grace, certificate, on_ready).run(sockets=[listener])


def _check_seconds(options: Mapping[str, float]) -> None:
    """Raise `UsageError` for values that are not valid waiting times, such as NaN."""
    for name, seconds in options.items():
        if not 0 <= seconds <= MAX_SECONDS:
            raise UsageError(f"--{name} is {seconds:g}: expected a number of seconds, at most {MAX_SECONDS:,}.")


def handle_signals() -> asyncio.Event:
    """Return the event that SIGHUP sets to request a check for changed models.

    Until the server handles SIGTERM, it ends the command line's own process with code 0: the first process of a
    container has no default handlers, so the signal would be lost there.
    """
    requested = asyncio.Event()
    process.reload_at_sighup(requested.set)
    if process.is_claimed():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    return requested


def _choose_models(model: Path | str | None, folder: Path | None, name: str | None) -> Callable[[], list[StoredModel]]:
    """Return a function that lists the models: one, or those of a folder; raise `UsageError` unless one is chosen."""
    from sightline.serve.model_folder import StoredModel, check_folder, list_folder

    if folder is None and model is not None:
        entry = StoredModel(_io.expand_home(model), name)
        return lambda: [entry]
    if folder is None or model is not None:
        raise UsageError("Give either one model, or a folder of models with --models.")
    if name is not None:
        raise UsageError("With --models, each model has the name of its folder or file: leave --name out.")
    check_folder(folder)
    return lambda: list_folder(folder)
