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
    """Why a model on disk cannot be used, and when it is tried again although its files have not changed.

    Times are in seconds; `time` is that of `time.monotonic`.
    """

    reason: str
    wait: float
    time: float


class Reloader:
    """Looks every `seconds` (0: never), and when it is `requested`, for models that changed, and replaces them.

    A model is loaded, verified and warmed up before it takes the place of the one with the same name and version, all
    changed ones in one step. Requests that are in flight are answered by the model that they started with. Files must
    have stayed the same for `seconds`, so that no copy is read halfway; on request they are read at once. `options` are
    those of `StoredModel.load`.

    A model that cannot be used is tried again on request, and after `seconds`, twice as many, and so on up to
    `MAX_RETRY_SECONDS`: the reason may pass without a change of its files, as that of a permission or of a disk does.
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
        self._loaded: dict[StoredModel, Any] = {}  # what was loaded last, or could not be, with its signature
        self._seen: dict[StoredModel, Any] = {}  # at the last look
        self._failures: dict[StoredModel, _Failure] = {}
        self._scan_error = ""
        self._thread = ThreadPoolExecutor(1, "load")  # the same one each time: its memory is used again

    def load_all(self) -> list[ServedModel]:
        """Load the models with which the server starts; raises `ModelError` or `UsageError` if one cannot be used."""
        entries = self._list_entries()
        signatures = [entry.read_signature() for entry in entries]
        models = load_all(entries, self._options)
        self._loaded = {
            replace(entry, name=served.name): signature
            for entry, served, signature in zip(entries, models, signatures, strict=True)
        }
        return models

    async def run(self, models: RunningModels, metrics: Metrics) -> None:
        """Keep `models` as they are on disk, until cancelled."""
        try:
            while True:
                is_requested = await self._wait()
                try:
                    await self._update(models, metrics, settle=not is_requested)
                    self._scan_error = ""
                except SightlineError as error:
                    self._report_scan(first_line(error), metrics, repeat=is_requested)
                except Exception:  # noqa: BLE001  # a fault of this code must not end the looks
                    _LOG.exception("The models cannot be loaded again.")
        finally:
            self._thread.shutdown(wait=False)  # a model that is being loaded does not keep requests from being finished

    async def _wait(self) -> bool:
        """Wait until it is time to look; return whether that was requested."""
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
        if len(entries) == len(self._loaded) == 1 and entries[0].name is None:  # the name of the first time
            entries = [replace(entries[0], name=next(iter(self._loaded)).name)]
        return {entry: entry.read_signature() for entry in entries}

    async def _start(
        self, entry: StoredModel, models: RunningModels, metrics: Metrics, *, repeat: bool
    ) -> dict[Key, RunningModel]:
        """Return the model of an entry by its key, started; nothing if it cannot be used.

        The reason is logged if it is another one than the last time, or with `repeat`.
        """
        running = None
        try:
            loop = asyncio.get_running_loop()
            served = await loop.run_in_executor(self._thread, entry.load, self._options)
            running = models.create(served)
            await running.start(warm_up=True)
        except Exception as error:  # noqa: BLE001  # whatever is wrong with it, the server goes on
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
        """Plan the next attempt, and tell whether the reason is a new one."""
        last = self._failures.get(entry)
        wait = self._seconds if last is None else min(2 * last.wait, MAX_RETRY_SECONDS)
        self._failures[entry] = _Failure(reason, wait, time.monotonic() + wait)
        return last is None or last.reason != reason
