"""Multi-host training: host 0 resolves the settings and writes the run, the others train along with the same settings.

Before the first step, the hosts synchronize three times: on the settings, the images, and the checkpoint to resume
from. Until then, an error on one host is broadcast, and every host exits with a message; later, JAX ends the other
hosts.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sightline import hosts, jsonio
from sightline.config import DeviceConfig, RunConfig, resolve, to_dict
from sightline.data.dataset import Dataset, assemble, check_classes
from sightline.data.index import Sources
from sightline.data.index import index as make_index
from sightline.data.patch import corrected
from sightline.errors import DataError, HostError, Interrupted, SightlineError, UsageError, plural
from sightline.hosts import ALONE, Hosts, Team
from sightline.models.describe import parameters, weights_sha256
from sightline.records import Index, TrainingMetrics, TrainResult
from sightline.training import devices
from sightline.training.checkpoint import Checkpoint
from sightline.training.fit import fit
from sightline.watch import Watcher
from sightline.workflow import choose, environment, networks
from sightline.workflow.request import Request, start_weights


@dataclass(slots=True)
class Meeting:
    """The exchange between the hosts of `team` before the first step; trivial with a single host."""

    team: Team = field(default_factory=lambda: ALONE)
    over: bool = False

    def _meet(self, **facts: Any) -> list[dict[str, Any]]:
        """Send `facts` and return those of all hosts; raises if a host sent an error."""
        if self.team.count == 1:
            return [facts]
        found: list[dict[str, Any]] = [
            json.loads(text) for text in self.team.gather(jsonio.dumps(facts, ensure_ascii=True))
        ]
        for rank, fact in enumerate(found):
            if "error" in fact:
                self.over = True
                kind = Interrupted if fact["stopped"] else DataError
                raise kind(f"Host {rank}: {fact['error']}")
        return found

    def tell(self, error: BaseException) -> None:
        """Send an error instead of what the other hosts are waiting for."""
        if self.team.count > 1 and not self.over:
            self.over = True
            stopped = isinstance(error, Interrupted | KeyboardInterrupt)
            text = str(error) if isinstance(error, SightlineError) else f"{type(error).__name__}: {error}"
            self.team.gather(jsonio.dumps({"error": text, "stopped": stopped}, ensure_ascii=True))

    def send_settings(self, config: RunConfig, request: dict[str, Any], patch: Path | None) -> None:
        """Send the request and the resolved settings to the other hosts; called on host 0."""
        text = patch.read_text(encoding="utf-8") if patch else None
        self._meet(config=to_dict(config), request=request, patch=text)

    def hear_settings(self) -> dict[str, Any]:
        """Receive what host 0 sends."""
        return self._meet()[0]

    def compare(self, data: Dataset, start: Path | None) -> None:
        """Raise `DataError` on all hosts if the images or the initial weights differ between them."""
        if self.team.count == 1:
            return
        pictures = [(p.sha256, p.label, part) for p, part in zip(data.pictures, data.parts, strict=True)]
        digest = hashlib.sha256(jsonio.dumps([pictures, data.classes], ensure_ascii=True).encode()).hexdigest()
        weights = hashlib.sha256(start.read_bytes()).hexdigest() if start else None
        found = self._meet(data=digest, weights=weights, count=len(pictures))
        for rank, fact in enumerate(found):
            if fact["data"] != digest or fact["data"] != found[0]["data"]:
                other = rank or next(r for r, f in enumerate(found) if f["data"] != found[0]["data"])
                raise DataError(
                    f"Host {other} has different images than host 0 ({found[other]['count']} there, "
                    f"{found[0]['count']} here, by content, label and order): give every host the same data."
                )
            if fact["weights"] != found[0]["weights"]:
                raise DataError(f"Host {rank} has other initial weights than host 0: give every host the same file.")

    def share(self, saved: Checkpoint | None) -> Checkpoint | None:
        """Broadcast the checkpoint that host 0 resumes from."""
        if self.team.count == 1:
            return saved
        file = io.BytesIO()
        if saved is not None:
            np.savez(
                file, allow_pickle=False, state=np.array(jsonio.dumps(saved.state, ensure_ascii=True)), **saved.arrays
            )
        content = self.team.broadcast(file.getvalue())
        if not content or self.team.rank == 0:
            return saved
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return Checkpoint(arrays, jsonio.loads(str(arrays.pop("state"))))

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Disconnect the hosts after the block; raises `HostError` if one was lost in it."""
        self.over = True
        try:
            yield
        except SightlineError:
            self.team.leave()
            raise
        except Exception as error:
            if self.team.count > 1 and hosts.lost(error):
                raise HostError(
                    f"Another host ended or cannot be reached ({str(error).splitlines()[0][:160]}): see its output, "
                    "then restart all hosts with `sightline resume`."
                ) from error
            raise
        self.team.leave()


@contextmanager
def meeting(wanted: Hosts | None, device: DeviceConfig, watcher: Watcher) -> Iterator[Meeting]:
    """Start the backend and wait for the other hosts, if any; errors in the block are sent to them."""
    if wanted is None:
        yield Meeting()
        return
    environment.start(replace(device, backend="jax") if device.backend == "auto" else device)
    watcher.say(f"waiting for {wanted.count or 'all'} hosts{f' at {wanted.address}' if wanted.address else ''}")
    found = Meeting(hosts.join(wanted))
    try:
        yield found
        found.tell(DataError("there was nothing to train."))
    except (Exception, KeyboardInterrupt) as error:
        found.tell(error)
        raise


def on_jax(request: Request, wanted: Hosts | None) -> Request:
    """Return `request` with the JAX backend, which multi-host training needs, unless it names a backend."""
    if wanted is None or request.settings().device.backend != "auto":
        return request
    return replace(request, assignments=(*request.assignments, "device.backend=jax"))


def check(team: Team, config: RunConfig) -> None:
    """Raise `UsageError` if a run is resumed with another number of hosts than it was started with."""
    if team.count != config.device.hosts:
        raise UsageError(
            f"This run was started on {plural(config.device.hosts, 'host')}, not on {team.count}: resume it on as many "
            "(--hosts)."
        )


def follow(meeting: Meeting, sources: Sources | None, started: float) -> TrainResult:
    """Train along with host 0, writing nothing; `sources` as on host 0, None for those of the run."""
    told = meeting.hear_settings()
    config = resolve(told["config"])
    again = Request.from_dict(told["request"], "The settings from host 0").again(None) if sources is None else sources
    threads = config.device.threads or None
    index = make_index(again, threads=threads, options=config.data)
    index = _corrected(index, told["patch"])
    check_classes(index)
    start = start_weights(config)
    data = assemble(
        index, choose.preprocess(config), config.split, config.seed, keep=config.data.cache, threads=threads
    )
    plan = networks.plan(config, data, start)
    meeting.compare(data, start)
    saved = meeting.share(None)
    spread = devices.spread(config.device)
    with spread.scope(), meeting.apart():
        network = networks.built(plan, data)
        fitted = fit(network, data.part("train"), data.part("validation"), config, Watcher(), saved=saved)
    model, best = networks.alone(network, plan, spread), fitted.best
    return TrainResult(
        run="",
        model=config.model.name,
        parameters=parameters(model),
        classes=data.classes,
        train=TrainingMetrics.of(best, data.counts()["train"]),
        validation=None,
        test=None,
        epochs=len(fitted.history),
        seconds=time.perf_counter() - started,
        images_per_second=fitted.images_per_second,
        weights_sha256=weights_sha256(model),
        recipe=config.recipe,
        notes=data.notes,
        bundle_reason="host 0 writes it",
        details={"host": meeting.team.rank},
    )


def _corrected(index: Index, patch: str | None) -> Index:
    if patch is None:
        return index
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "patch.jsonl")
        path.write_text(patch, encoding="utf-8")
        return corrected(index, path)
