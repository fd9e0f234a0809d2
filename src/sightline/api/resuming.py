"""`resume`: continue an interrupted run to the same weights as an uninterrupted one, or extend a complete run."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from sightline import _io, backend
from sightline._keras.process_state import restore_torch_settings
from sightline.api import folds, ray_training
from sightline.api.ray_options import resolve_engine
from sightline.api.report_writer import load_packages, write_first_report
from sightline.callbacks import Callback
from sightline.config import DeviceConfig
from sightline.data.indexing import Sources
from sightline.distributed.cluster import ClusterSpec, resolve_cluster
from sightline.errors import ModelError, UsageError
from sightline.escaping import quote_path
from sightline.runs import environment, existing_run, extension, host_session, time_limit
from sightline.runs.directory import RunDirectory
from sightline.runs.failures import INPUT_ERRORS, record_failure
from sightline.runs.folds import select_images
from sightline.runs.paths import is_run
from sightline.runs.pipeline import Job, run_pipeline
from sightline.runs.resolve import RunInputs, resolve_request, restore_inputs
from sightline.runs.run_images import check_sources, keep_splits
from sightline.runs.train_request import TrainRequest
from sightline.training import interrupt
from sightline.training.result import TrainResult


def resume_run(  # noqa: PLR0913  # one keyword argument per option of the command
    path: Path,
    sources: Sources | None,
    *,
    epochs: int | None,
    hosts: int | str | None,
    coordinator: str | None,
    rank: int | None,
    engine: str,
    num_workers: int | None,
    cpus_per_worker: int | None,
    ray_address: str | None,
    callback: Callback,
) -> TrainResult:
    """Resume the run at `path`, which needs to exist only on host 0; see `Run.resume`."""
    run = RunDirectory(path)
    device = run.config.device if engine == "ray" and run.has_config else DeviceConfig()
    ray_options = resolve_engine(
        engine, num_workers=device.num_hosts if num_workers is None and engine == "ray" else num_workers,
        cpus_per_worker=cpus_per_worker, ray_address=ray_address, devices=device.num_devices,
        others={"--hosts": hosts, "--coordinator": coordinator, "--rank": rank},
    )  # fmt: skip
    arguments: dict[str, Any] = {"path": path, "sources": sources, "epochs": epochs}
    if ray_options is not None:
        return ray_training.resume_on_cluster(arguments, ray_options, callback)
    cluster = resolve_cluster(None if hosts is None else str(hosts), coordinator, rank, os.environ)
    return resume(**arguments, hosts=cluster, callback=callback)


@restore_torch_settings()
def resume(
    path: Path | str,
    sources: Sources | None = None,
    *,
    epochs: int | None = None,
    hosts: ClusterSpec | None = None,
    callback: Callback | None = None,
) -> TrainResult:
    """Resume the run at `path` from its last checkpoint, with its original settings and choices.

    The final weights match those of an uninterrupted run bit for bit, on the same machine with the same versions. For
    a complete run, the result is returned, unless `epochs` exceeds the epochs that it has: then its last stage is
    extended to that total, with the state of the optimizer and of all random number generators restored. A schedule
    is recomputed over the whole extended stage; otherwise the result matches a run with that many epochs from the
    start bit for bit. Everything derived from the old weights (metrics, thresholds, the bundle) is replaced.

    `sources`: the same images at another location, or the arrays that the run was started with. `hosts`: as many as
    the run was started with, see `train`; the run directory is on host 0.

    Raises `ModelError` if `path` is not a run or cannot be extended because it has no checkpoint, `UsageError` if a run
    to extend is incomplete or has more epochs already, `OutputError` if another process is writing the run, `DataError`
    if the images have changed, and whatever `train` raises.
    """
    start_time = time.perf_counter()
    callback = callback or Callback()
    original_device = DeviceConfig()
    if hosts is None or is_run(_io.expand_home(path)):  # only host 0 needs the run
        run = RunDirectory.open(Path(path))
        original_device = run.config.device if run.has_config else original_device
    backend.tune_malloc(original_device.backend)  # before the first thread
    with interrupt.raise_on_sigterm(), host_session.open_session(hosts, original_device, callback) as session:
        if session.team.rank:
            return host_session.train_follower(session, sources, start_time)
        run = RunDirectory.open(Path(path))
        with run.lock():
            if epochs is not None:
                extension.begin_extension(run, epochs, callback)
            return _resume_locked(Job(run, callback, start_time, session), sources)


def _resume_locked(job: Job, sources: Sources | None) -> TrainResult:
    """Resume a run whose lock is held."""
    run, callback = job.run, job.callback
    info = run.info
    if info.get("status") == "complete":
        callback.on_message(f"{run.path} is complete: nothing to do; --epochs N continues it up to N epochs")
        extension.clean_checkpoints(run, keep=run.config.train.keep_last_checkpoint, callback=callback)
        return existing_run.load_result(run)
    if "request" not in info:
        raise ModelError(f"{run.path} does not record the arguments of its training: retrain with --force.")
    try:
        if run.has_config:
            _check_environment(info, run, callback)
        request = TrainRequest.from_dict(info["request"], str(run.path / "run.json"))
        if sources is None and not request.arrays:
            moved = f"say where they are now: `sightline resume {quote_path(run.path)} FOLDER`"
            check_sources(run, request.named_sources(), moved)
        config = run.config if run.has_config else request.merge_layers()
        budget = time_limit.open_budget(run, config, job.start_time)
        with record_failure(run, new=False, budget=budget):
            inputs = _restore(run, request, sources, callback)
            folds.train_folds(job, inputs, request, request.resolve_sources(sources))
            return run_pipeline(replace(job, budget=budget), inputs, write_first_report, load_packages)
    except INPUT_ERRORS:
        extension.withdraw_extension(run)
        raise


def _restore(run: RunDirectory, request: TrainRequest, sources: Sources | None, callback: Callback) -> RunInputs:
    """Return the recorded settings and the images; a run without recorded settings chooses them."""
    run.remove_partial_files()
    run.update(status="running", resumed=run.info.get("resumed", 0) + 1)
    if not run.has_config:
        inputs = resolve_request(request, request.resolve_sources(sources), callback)
        return replace(inputs, index=select_images(inputs.index, inputs.config.split))
    extension.apply_extension(run)
    config = run.config
    inputs = restore_inputs(config, request, sources, run.patch, callback)
    if config.device.num_hosts > 1:  # the other hosts do not have the run
        return inputs
    return replace(inputs, index=keep_splits(run, inputs.index))


def _check_environment(info: dict[str, Any], run: RunDirectory, callback: Callback) -> None:
    """Report changes of versions or processor since the run started; reject them if the run must be deterministic."""
    recorded = {**info.get("versions", {}), **({"processor": info["processor"]} if "processor" in info else {})}
    current = {**environment.installed_versions(), "processor": environment.processor_id()}
    changed = [
        f"{name} {recorded[name]} then, {current.get(name)} now"
        for name in recorded
        if recorded[name] != current.get(name)
    ]
    if not changed:
        return
    if run.config.device.deterministic:
        raise UsageError(
            f"The weights could differ in the last bits ({', '.join(changed)}), but the run is deterministic: resume "
            f"it on the original setup, or set device.deterministic = false in {run.path / 'config.toml'}."
        )
    callback.on_message(
        f"Changed since the run started: {', '.join(changed)}. The weights may differ in the last bits."
    )
