"""The engine that trains a run: this process, several hosts, or the workers of a Ray cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sightline.api import ray_training, resuming
from sightline.api.ray_options import resolve_engine
from sightline.callbacks import Callback
from sightline.config import DeviceConfig
from sightline.data.indexing import Sources
from sightline.distributed.cluster import resolve_cluster
from sightline.runs.directory import RunDirectory
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
    callback: Callback | None,
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
        return ray_training.resume_on_cluster(arguments, ray_options, callback or Callback())
    cluster = resolve_cluster(None if hosts is None else str(hosts), coordinator, rank, os.environ)
    return resuming.resume(**arguments, hosts=cluster, callback=callback)
