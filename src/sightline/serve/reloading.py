"""Reload models that change on disk while the server runs; a model that cannot be used changes nothing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from sightline.errors import SightlineError, first_line
from sightline.serve.metrics import Metrics
from sightline.serve.model_folder import DEFAULT_OPTIONS, LoadOptions, StoredModel, load_all
from sightline.serve.running_models import RunningModel, RunningModels
from sightline.serve.served_model import Key, ServedModel

MAX_RETRY_SECONDS = 300.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a model on disk cannot be used, and when to try it again even if its files have not changed.

    Times are in seconds; `time` is from `time.monotonic`.
    """

    reason: str
    wait: float
    time: float


class Reloader:
    """Looks for changed models every `seconds` (0: never), and when `requested` is set, and replaces them.

    A model is loaded, verified and warmed up before it replaces the one with the same name and version; all changed
    models are replaced in one step. Requests in flight are answered by the model that they started with. Files must
    have stayed the same for `seconds`, so that no incomplete copy is read; on request they are read at once. `options`
    are passed to `StoredModel.load`.

    A model that cannot be used is tried again on request, and after `seconds`, twice as many, and so on up to
    `MAX_RETRY_SECONDS`: a cause such as a permission or a disk may go away without a change to the files.
    """

    def __init__(
        self,
        list_entries: Callable[[], list[StoredModel]],
        options: LoadOptions = DEFAULT_OPTIONS,
        seconds: float = 0,
        requested: asyncio.Event | None = None,
    ) -> None:
        self._list_entries, self._options, self._seconds = list_entries, options, seconds
        self.requested = requested or asyncio.Event()
        self._loaded: dict[StoredModel, Any] = {}  # signatures of the last loads, failed ones included
        self._seen: dict[StoredModel, Any] = {}  # signatures at the last check
        self._failures: dict[StoredModel, _Failure] = {}
        self._scan_error = ""
        self._thread = ThreadPoolExecutor(1, "load")  # always the same thread, so that its memory is reused

    def load_all(self) -> list[ServedModel]:
        """Load the models that the server starts with; raise `ModelError` or `UsageError` if one cannot be used."""
        entries = self._list_entries()
        signatures = [entry.read_signature() for entry in entries]
        models = load_all(entries, self._options)
        self._loaded = {
            replace(entry, name=served.name): signature
            for entry, served, signature in zip(entries, models, signatures, strict=True)
        }
        return models

    async def run(self, models: RunningModels, metrics: Metrics) -> None:
        """Keep `models` up to date with the disk until cancelled."""
        try:
            while True:
                is_requested = await self._wait()
                try:
                    await self._update(models, metrics, settle=not is_requested)
                    self._scan_error = ""
                except SightlineError as error:
                    self._report_scan(first_line(error), metrics, repeat=is_requested)
                except Exception:  # noqa: BLE001  # a bug in this code must not end the checks
                    _LOG.exception("The models cannot be loaded again.")
        finally:
            self._thread.shutdown(wait=False)  # a model being loaded must not delay the end of requests

    async def _wait(self) -> bool:
        """Wait until the next check; return whether it was requested."""
        try:
            async with asyncio.timeout(self._seconds or None):
                await self.requested.wait()
        except TimeoutError:
            return False
        self.requested.clear()
        return True

    def _report_scan(self, message: str, metrics: Metrics, *, repeat: bool) -> None:
        if repeat or message != self._scan_error:
            metrics.count_reload("", "failed")
            _LOG.error("%s The server keeps its models.", message)
        self._scan_error = message

    async def _update(self, models: RunningModels, metrics: Metrics, *, settle: bool) -> None:
        signatures = await asyncio.to_thread(self._read_signatures)
        changed = [entry for entry, signature in signatures.items() if self._loaded.get(entry) != signature]
        for entry in changed:
            self._failures.pop(entry, None)
        self._failures = {entry: failure for entry, failure in self._failures.items() if entry in signatures}
        now = time.monotonic()
        changed += [entry for entry, failure in self._failures.items() if not settle or failure.time <= now]
        removed = {entry.key for entry in self._loaded} - {entry.key for entry in signatures}
        is_settled, self._seen = signatures == self._seen, signatures
        if not (changed or removed) or (settle and not is_settled):
            return
        started: dict[Key, RunningModel] = {}
        for entry in changed:
            started |= await self._start(entry, models, metrics, repeat=not settle)
        self._loaded = signatures
        gone = [served.key for served in models.served if served.key in removed]
        models.update(started, gone)
        for (name, number), running in started.items():
            metrics.count_reload(name, "loaded")
            _LOG.info("The model %s, version %s, is ready.", name, number or running.served.version)
        for name, number in gone:
            metrics.count_reload(name, "removed")
            _LOG.info("The model %s%s was removed.", name, f", version {number}," if number else "")

    def _read_signatures(self) -> dict[StoredModel, Any]:
        entries = self._list_entries()
        if len(entries) == len(self._loaded) == 1 and entries[0].name is None:  # keep the name of the first load
            entries = [replace(entries[0], name=next(iter(self._loaded)).name)]
        return {entry: entry.read_signature() for entry in entries}

    async def _start(
        self, entry: StoredModel, models: RunningModels, metrics: Metrics, *, repeat: bool
    ) -> dict[Key, RunningModel]:
        """Return the started model of an entry by its key; empty if it cannot be used.

        The reason is logged if it differs from the last one, or with `repeat`.
        """
        running = None
        try:
            loop = asyncio.get_running_loop()
            served = await loop.run_in_executor(self._thread, entry.load, self._options)
            running = models.create(served)
            await running.start(warm_up=True)
        except Exception as error:  # noqa: BLE001  # whatever is wrong with the model, the server goes on
            if running is not None:
                await running.stop()
            metrics.count_reload(entry.name or "", "failed")
            is_kept = any(served.key == entry.key for served in models.served)
            if self._add_failure(entry, first_line(error)) or repeat:
                end = "The server keeps the one that it has." if is_kept else "It is not served."
                _LOG.error("%s %s", first_line(error), end)
            return {}
        self._failures.pop(entry, None)
        return {served.key: running}

    def _add_failure(self, entry: StoredModel, reason: str) -> bool:
        """Schedule the next attempt, and return whether the reason is new."""
        last = self._failures.get(entry)
        wait = self._seconds if last is None else min(2 * last.wait, MAX_RETRY_SECONDS)
        self._failures[entry] = _Failure(reason, wait, time.monotonic() + wait)
        return last is None or last.reason != reason
