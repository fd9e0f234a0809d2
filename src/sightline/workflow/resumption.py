"""`resume`: a run that was stopped, however, goes on to the weights that it would have had."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from sightline import backend
from sightline.config import DeviceConfig, RunConfig
from sightline.data.dataset import check_classes
from sightline.data.finding import Finding
from sightline.data.index import Sources
from sightline.data.index import index as make_index
from sightline.data.patch import corrected
from sightline.errors import ModelError, UsageError
from sightline.hosts import Hosts
from sightline.records import Index, TrainResult
from sightline.run import Run
from sightline.training import interrupt
from sightline.watch import Watcher
from sightline.workflow import again, environment, extension, together
from sightline.workflow.ending import INPUT, marked
from sightline.workflow.request import Request, settle
from sightline.workflow.together import Meeting
from sightline.workflow.training import Training


def resume(
    path: Path | str,
    sources: Sources | None = None,
    *,
    epochs: int | None = None,
    hosts: Hosts | None = None,
    watcher: Watcher | None = None,
) -> TrainResult:
    """Go on with the run at `path` from its last checkpoint, with the settings and choices that it was begun with.

    It ends with the weights, bit for bit, of a run that was never stopped, on the same machine with the same versions.
    A complete run is left as it is, and its result returned, unless more `epochs` are asked for than it has: then its
    last stage goes on to so many in all, with the optimizer's state and all streams of chance as they were left. A
    schedule is restated over the whole of that stage; what a run of that many epochs from the start has in common with
    this one, it shares bit for bit. What was made of the weights before (figures, thresholds, the bundle) is made anew.

    `sources`: the same images at another place, or the arrays that it was begun with. `hosts`: as many as it was begun
    with, see `train`; the run lies on host 0.

    Raises `ModelError` if `path` holds no run, or one to extend whose state of training was not kept, `UsageError` if
    one to extend has more epochs already or is not complete, `OutputError` if another process is at it, `DataError` if
    the images are no longer the same, and what `train` raises.
    """
    started = time.perf_counter()
    watcher = watcher or Watcher()
    begun = DeviceConfig()
    if hosts is None or again.is_run(Path(path)):  # it need not be there on hosts other than 0
        run = Run.open(Path(path))
        begun = run.config.device if run.has_config else begun
    backend.keep_freed_memory(begun.backend)  # before the first thread
    with interrupt.at_once(), together.meeting(hosts, begun, watcher) as meeting:
        if meeting.team.rank:
            return together.follow(meeting, sources, started)
        run = Run.open(Path(path))
        with run.held():
            if epochs is not None:
                extension.begin(run, epochs, watcher)
            return _lead(run, sources, watcher, started, meeting)


def _lead(run: Run, sources: Sources | None, watcher: Watcher, started: float, meeting: Meeting) -> TrainResult:
    """Go on with a run that is held."""
    info = run.info
    if info.get("status") == "complete":
        watcher.say(f"{run.path} is complete: there is nothing left to do")
        extension.conclude(run, keep=run.config.train.keep_state, watcher=watcher)
        return again.result(run, run.result)
    if "request" not in info:
        raise ModelError(f"{run.path} does not say what was asked for: train anew with --force.")
    try:
        if run.has_config:
            _compare_machines(info, run, watcher)
        with marked(run, new=False):
            return Training(*_begun(run, info, sources, watcher), run, watcher, started, meeting).go()
    except INPUT:
        extension.withdraw(run)
        raise


def _begun(
    run: Run, info: dict[str, Any], sources: Sources | None, watcher: Watcher
) -> tuple[RunConfig, Index, tuple[Finding, ...]]:
    """Return the settings, the index and, for a run that has not recorded them yet, the findings."""
    run.tidy()
    run.update(status="running", resumed=info.get("resumed", 0) + 1)
    request = Request.from_dict(info["request"], str(run.path / "run.json"))
    if not run.has_config:
        return settle(request.again(sources), request, watcher)
    extension.apply(run)
    config = request.anchored(run.config)
    environment.check_packages(config)
    environment.start(config.device)
    threads = config.device.threads or None
    index = make_index(request.again(sources), watcher.progress, threads, options=config.data)
    index = corrected(index, run.patch)
    check_classes(index)
    return config, index, ()


def _compare_machines(info: dict[str, Any], run: Run, watcher: Watcher) -> None:
    """Say where versions or the processor are others than at the beginning; refuse them to a deterministic run."""
    before = {**info.get("versions", {}), **({"processor": info["processor"]} if "processor" in info else {})}
    now = {**environment.versions(), "processor": environment.processor()}
    changed = [f"{name} {before[name]} then, {now.get(name)} now" for name in before if before[name] != now.get(name)]
    if not changed:
        return
    if run.config.device.deterministic:
        raise UsageError(
            f"The weights could differ in last bits ({', '.join(changed)}), and the run is to be deterministic: resume "
            f"it where it began, or set device.deterministic = false in {run.path / 'config.toml'}."
        )
    watcher.say(f"Other than at the beginning: {', '.join(changed)}. The weights may differ in last bits.")
