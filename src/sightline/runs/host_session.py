"""Multi-host training: host 0 resolves the settings and writes the run; the others train with the same settings.

Before the first step, the hosts synchronize three times: on the settings, the images, and the checkpoint to resume
from. Until then, an error on one host is broadcast, and every host exits with a message; later, JAX ends the other
hosts.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sightline import _io, _packed, jsonio
from sightline.callbacks import Callback
from sightline.config import DeviceConfig, RunConfig, resolve_config, to_dict
from sightline.data.dataset import DecodedDataset
from sightline.data.indexing import Sources
from sightline.data.label_patch import PATCH_LIMIT
from sightline.distributed import cluster
from sightline.distributed.cluster import SINGLE_HOST, Cluster, ClusterSpec
from sightline.errors import DataError, HostError, Interrupted, SightlineError, UsageError, first_line, plural
from sightline.models.describe import count_parameters, weights_sha256
from sightline.runs import environment, network_setup
from sightline.runs.resolve import restore_inputs
from sightline.runs.train_request import TrainRequest
from sightline.training import interrupt
from sightline.training.checkpoints import Checkpoint
from sightline.training.result import TrainingMetrics, TrainResult


@dataclass(slots=True)
class HostSession:
    """The exchange between the hosts of `team` before the first step; trivial with a single host."""

    team: Cluster = field(default_factory=lambda: SINGLE_HOST)
    closed: bool = False

    def _exchange(self, **facts: Any) -> list[dict[str, Any]]:
        """Send `facts` and return those of all hosts; raises if a host sent an error."""
        if self.team.count == 1:
            return [facts]
        all_facts: list[dict[str, Any]] = [
            jsonio.loads(text) for text in self.team.gather(jsonio.dumps(facts, ensure_ascii=True))
        ]
        for rank, fact in enumerate(all_facts):
            if "error" in fact:
                self.closed = True
                kind = Interrupted if fact["stopped"] else DataError
                raise kind(f"Host {rank}: {fact['error']}")
        return all_facts

    def send_error(self, error: BaseException) -> None:
        """Send an error instead of what the other hosts are waiting for."""
        if self.team.count > 1 and not self.closed:
            self.closed = True
            was_interrupted = isinstance(error, Interrupted | KeyboardInterrupt)
            text = str(error) if isinstance(error, SightlineError) else f"{type(error).__name__}: {error}"
            self.team.gather(jsonio.dumps({"error": text, "stopped": was_interrupted}, ensure_ascii=True))

    def send_settings(self, config: RunConfig, request: dict[str, Any], patch: Path | None) -> None:
        """Send the request and the resolved settings to the other hosts; called on host 0."""
        text = _io.read_regular(patch, PATCH_LIMIT).decode() if patch else None
        self._exchange(config=to_dict(config), request=request, patch=text)

    def receive_settings(self) -> dict[str, Any]:
        """Receive the settings from host 0."""
        return self._exchange()[0]

    def check_same_data(self, data: DecodedDataset, initial_weights: Path | None) -> None:
        """Raise `DataError` on all hosts if the images or the initial weights differ between them."""
        if self.team.count == 1:
            return
        images = [(p.sha256, p.label, split) for p, split in zip(data.images, data.splits, strict=True)]
        digest = hashlib.sha256(jsonio.dumps([images, data.classes], ensure_ascii=True).encode()).hexdigest()
        weights = _hash_file(initial_weights) if initial_weights else None
        first, *others = self._exchange(data=digest, weights=weights, count=len(images))
        for rank, fact in enumerate(others, 1):
            if fact["data"] != first["data"]:
                raise DataError(
                    f"The images of host {rank} ({fact['count']}) and host 0 ({first['count']}) differ in content, "
                    "label, split or order: give every host the same data."
                )
            if fact["weights"] != first["weights"]:
                raise DataError(
                    f"Host {rank} has different initial weights than host 0: give every host the same file."
                )

    def broadcast_checkpoint(self, checkpoint: Checkpoint | None) -> Checkpoint | None:
        """Broadcast the checkpoint that host 0 resumes from."""
        if self.team.count == 1:
            return checkpoint
        file = io.BytesIO()
        if checkpoint is not None:
            np.savez(
                file,
                allow_pickle=False,
                state=np.array(jsonio.dumps(checkpoint.state, ensure_ascii=True)),
                **checkpoint.arrays,
            )
        content = self.team.broadcast(file.getvalue())
        if not content or self.team.rank == 0:
            return checkpoint
        arrays = _packed.load_arrays(io.BytesIO(content))
        return Checkpoint(arrays, jsonio.loads(str(arrays.pop("state"))))

    @contextmanager
    def disconnecting(self) -> Iterator[None]:
        """Disconnect the hosts after the block; raises `HostError` if one was lost in it."""
        self.closed = True
        try:
            yield
        except SightlineError:
            self.team.disconnect()
            raise
        except Exception as error:
            if self.team.count > 1 and cluster.is_host_lost(error):
                raise HostError(
                    f"Another host ended or cannot be reached ({first_line(error)[:160]}): see its output, "
                    "then restart all hosts with `sightline resume`."
                ) from error
            raise
        self.team.disconnect()


@contextmanager
def open_session(requested: ClusterSpec | None, device: DeviceConfig, callback: Callback) -> Iterator[HostSession]:
    """Start the backend and wait for the other hosts, if any; errors in the block are sent to them."""
    if requested is None:
        yield HostSession()
        return
    environment.start_backend(replace(device, backend="jax") if device.backend == "auto" else device)
    callback.on_message(
        f"waiting for {requested.count or 'all'} hosts{f' at {requested.address}' if requested.address else ''}"
    )
    with interrupt.end_on_stop_signals():
        session = HostSession(cluster.connect(requested))
    try:
        yield session
        session.send_error(DataError("there was nothing to train."))
    except (Exception, KeyboardInterrupt) as error:
        session.send_error(error)
        raise


def with_jax_backend(request: TrainRequest, requested: ClusterSpec | None) -> TrainRequest:
    """Return `request` with the JAX backend, which multi-host training needs, unless it names a backend."""
    if requested is None or request.merge_layers().device.backend != "auto":
        return request
    return replace(request, assignments=(*request.assignments, "device.backend=jax"))


def check_host_count(team: Cluster, config: RunConfig) -> None:
    """Raise `UsageError` if a run is resumed with another number of hosts than it was started with."""
    if team.count != config.device.num_hosts:
        raise UsageError(
            f"This run was started on {plural(config.device.num_hosts, 'host')}, not on {team.count}: "
            "resume it on the same number (--hosts)."
        )


def train_follower(session: HostSession, sources: Sources | None, start_time: float) -> TrainResult:
    """Train along with host 0, writing nothing; `sources` as on host 0, None for those of the run."""
    received = session.receive_settings()
    request = TrainRequest.from_dict(received["request"], "The settings from host 0")
    with _patch_file(received["patch"]) as patch:
        inputs = restore_inputs(resolve_config(received["config"]), request, sources, patch, Callback())
    prepared = network_setup.prepare_inputs(inputs)
    config, data = prepared.config, prepared.data
    session.check_same_data(data, prepared.spec.weights)
    checkpoint = session.broadcast_checkpoint(None)
    with session.disconnecting():
        network = network_setup.build_distributed_network(prepared)
        fit_result = network_setup.fit_network(network, prepared, Callback(), checkpoint)
    model, best_epoch = network.to_single_device_model(), fit_result.best
    return TrainResult(
        run="",
        model=config.model.name,
        parameters=count_parameters(model),
        classes=data.classes,
        train=TrainingMetrics.from_epoch(best_epoch, data.counts()["train"]),
        validation=None,
        test=None,
        epochs=len(fit_result.history),
        seconds=time.perf_counter() - start_time,
        images_per_second=fit_result.images_per_second,
        weights_sha256=weights_sha256(model),
        recipe=config.recipe,
        notes=data.notes,
        no_bundle_reason="host 0 writes it",
        details={"host": session.team.rank},
    )


def _hash_file(path: Path) -> str:
    with _io.open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _patch_file(patch: str | None) -> Iterator[Path | None]:
    """Write the text of a patch to a temporary file; None without one."""
    if patch is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "patch.jsonl")
        path.write_text(patch, encoding="utf-8")
        yield path
