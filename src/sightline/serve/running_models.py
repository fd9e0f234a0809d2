"""The running models of a server, by name and version; a model can be replaced while others keep serving."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Self

from starlette.exceptions import HTTPException
from starlette.requests import Request

from sightline import process
from sightline.errors import UsageError
from sightline.serve.batcher import Batcher, Batching
from sightline.serve.decoding import DecoderPool
from sightline.serve.feature_logs import FeatureLogs
from sightline.serve.limits import Limits
from sightline.serve.metrics import Metrics
from sightline.serve.responses import refuse_busy
from sightline.serve.served_model import Key, ServedModel
from sightline.serve.tracing import Tracing

MODEL_ADDRESSES = ("/models/{model}", "/models/{model}/versions/{version}")  # see `RunningModels.find_requested`
MAX_NAMES = 5  # models or versions listed in a message
TRIM_SECONDS = 1.0  # wait after a model was retired, so that nothing refers to it any more


class RunningModel:
    """A served model with its batcher, which computes predictions from `start` to `stop`.

    `tiling` limits how many whole images are in memory while they are predicted in tiles.
    """

    def __init__(self, served: ServedModel, batcher: Batcher, logs: FeatureLogs | None = None) -> None:
        self.served, self.batcher, self._logs = served, batcher, logs
        self.tiling = asyncio.Semaphore(max(2, batcher.capacity))  # one is decoded while another is predicted
        self._uses = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self._task: asyncio.Task[None] | None = None
        self._is_stopped = False

    async def start(self, *, warm_up: bool) -> None:
        """Begin to process batches; with `warm_up`, run the model and its decoders once before."""
        if warm_up:
            await self.batcher.warm_up()
        self._task = asyncio.create_task(self.batcher.run())

    @property
    def is_logged(self) -> bool:
        """Whether predictions have the id of their image in a feature log."""
        return self._logs is not None

    @contextmanager
    def use(self) -> Iterator[Self]:
        """Keep the model running until a request has been answered."""
        self._uses += 1
        self._unused.clear()
        try:
            yield self
        finally:
            self._uses -= 1
            if not self._uses:
                self._unused.set()

    def check_free(self) -> None:
        """Raise `HTTPException` if a new request must wait for others to end; called before its body is read."""
        if self.batcher.busy or self.batcher.stalled:
            raise refuse_busy()

    async def retire(self) -> None:
        """Stop once no request uses the model."""
        await self._unused.wait()
        await self.stop()

    async def stop(self) -> None:
        """Stop at once, if not stopped already."""
        if self._is_stopped:
            return
        self._is_stopped = True
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self.batcher.close()
        if self._logs is not None and (log := self._logs.release(self.served)) is not None:
            await asyncio.to_thread(log.close)


class RunningModels:
    """All models of a server, for one event loop; they share the decoding processes."""

    def __init__(
        self,
        limits: Limits,
        batching: Batching,
        metrics: Metrics,
        tracing: Tracing | None = None,
        feature_logs: FeatureLogs | None = None,
    ) -> None:
        self._limits, self._batching, self._metrics = limits, batching, metrics
        self._tracing, self._feature_logs = tracing, feature_logs
        self._decoders = DecoderPool(seconds=limits.decode)
        self._models: dict[Key, RunningModel] = {}
        self._retiring: dict[asyncio.Task[None], RunningModel] = {}

    def put(self, models: Iterable[ServedModel]) -> None:
        """Add models before `start`."""
        self.update({served.key: self.create(served) for served in models})

    def create(self, served: ServedModel) -> RunningModel:
        """Return a running model, not started yet, to be passed to `update`.

        Raises `OutputError` if its feature log cannot be written, `UsageError` if the model cannot have one.
        """
        log = None
        if self._feature_logs is not None:
            if served.classifier.tile:
                raise UsageError(
                    "A log of features is for whole images, but this model predicts masks in tiles: leave "
                    "--log-features out, or resize each image with --tile 0."
                )
            log = self._feature_logs.use(served)
        batcher = Batcher(
            served.classifier, self._limits, self._metrics.for_model(served.name), self._tracing, log,
            decoders=self._decoders, batching=self._batching,
        )  # fmt: skip
        return RunningModel(served, batcher, self._feature_logs)

    async def start(self, *, warm_up: bool) -> None:
        """Start all models."""
        for model in self._models.values():
            await model.start(warm_up=warm_up)

    def update(self, started: Mapping[Key, RunningModel], removed: Iterable[Key] = ()) -> None:
        """Replace models by the `started` ones with the same keys, and take away the `removed` ones, in one step.

        A replaced model stops when its last request has been answered.
        """
        removed = set(removed)
        old = [model for key, model in self._models.items() if key in removed or key in started]
        models = {key: model for key, model in self._models.items() if key not in removed} | dict(started)
        self._models = dict(sorted(models.items(), key=lambda item: (item[0][0], int(item[0][1] or 0))))
        for model in old:
            task = asyncio.create_task(model.retire())
            self._retiring[task] = model
            task.add_done_callback(self._forget)
        self._metrics.show_models([model.served for model in self._models.values()])

    def _forget(self, task: asyncio.Task[None]) -> None:
        """Forget a retired model, and return its memory to the system."""
        del self._retiring[task]
        loop = asyncio.get_running_loop()
        loop.call_later(TRIM_SECONDS, loop.run_in_executor, None, process.trim_memory)

    async def close(self) -> None:
        """Stop all models at once, including those that are being replaced."""
        retiring = dict(self._retiring)
        for task in retiring:
            task.cancel()
        await asyncio.gather(*retiring, return_exceptions=True)
        for model in (*retiring.values(), *self._models.values()):
            await model.stop()
        self._decoders.close()

    @property
    def served(self) -> list[ServedModel]:
        """All models, sorted by name and then by version, oldest first."""
        return [model.served for model in self._models.values()]

    @property
    def is_stalled(self) -> bool:
        """Whether a model has been running for longer than its limit."""
        return any(model.batcher.stalled for model in self._models.values())

    @property
    def hangs(self) -> bool:
        """Whether the process should be replaced; see `Batcher.hangs`."""
        return any(model.batcher.hangs for model in self._models.values())

    def list_versions(self, name: str) -> list[str]:
        """Return the versions of a model, from the oldest to the newest."""
        return [served.version for served in self.served if served.name == name]

    def find(self, name: str | None = None, version: str | None = None) -> RunningModel:
        """Return a model: the only one without a `name`, and its newest version without a `version`.

        Raises `HTTPException` 404 if there is no such model.
        """
        names = list(dict.fromkeys(served.name for served in self.served))
        if name is None:
            if len(names) > 1:
                raise HTTPException(
                    404, f"This server has several models: use /models/NAME/..., where NAME is {_list(names, 'or')}."
                )
            (name,) = names
        if name not in names:
            raise HTTPException(404, f"There is no model {name[:80]!r}: this server has {_list(names, 'and')}.")
        models = [model for model in self._models.values() if model.served.name == name]
        if version is None:
            return models[-1]
        for model in models:
            if model.served.version == version:
                return model
        versions = [model.served.version for model in models]
        raise HTTPException(
            404, f"There is no version {version[:80]!r} of {name!r}: this server has {_list(versions, 'and')}."
        )

    def find_requested(self, request: Request) -> RunningModel:
        """Return the model that the URL of a request names; raise `HTTPException` 404 if there is no such model."""
        parameters: Mapping[str, Any] = request.path_params
        return self.find(parameters.get("model"), parameters.get("version"))


def _list(names: list[str], conjunction: str) -> str:
    """Return names as a list for a message.

    >>> _list(["cats", "dogs"], "or")
    "'cats' or 'dogs'"
    >>> _list(list("abcdefg"), "and")
    "'c', 'd', 'e', 'f', 'g' and 2 more"
    """
    texts = [repr(name) for name in names[-MAX_NAMES:]]
    if len(names) > MAX_NAMES:
        texts.append(f"{len(names) - MAX_NAMES} more")
    *first, last = texts
    return f"{', '.join(first)} {conjunction} {last}" if first else last
