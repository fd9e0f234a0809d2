"""The training page: data and settings to choose, curves and log of running trainings, and sweeps in the folder."""

from __future__ import annotations

import asyncio
import csv
import io
import re
import time
from collections.abc import AsyncIterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from sightline import _io, jsonio
from sightline.config import recipes
from sightline.config.schema import MAX_EPOCHS
from sightline.studio.pages import FRESH, Pages, StrictJSONResponse, read_json
from sightline.studio.training_data import list_named
from sightline.studio.training_runs import ACTIVE, TrainingChoice, TrainingRuns

EFFORTS = ("fast", "balanced", "best")
POLL_S = 0.5  # between checks of the files of a run
STREAM_S = 20.0  # after this, a page connects again, so that the server never waits long for a page
RETRY_MS = 500
MAX_STREAMS = 64  # open at a time; each page has one for each run that it follows
FULL_RETRY_MS = 5000
MAX_TABLE = 4 << 20  # bytes of a sweep's results
MAX_TRIALS = 1000
FRACTION = re.compile(r"-?\d+(\.\d+|(\.\d+)?e[+-]?\d+)")


def make_routes(runs: TrainingRuns, name: str, pages: Pages) -> list[Route]:
    """Return the routes of the page.

    ``GET /train`` is the page, ``GET /train/runs`` lists the runs, and ``GET /train/events?run=NAME`` sends the events
    ``state`` and ``log`` of a run (server-sent events) until it has ended. ``POST /train/start`` starts a training,
    ``POST /train/stop`` and ``POST /train/resume`` stop and resume a run.
    """
    endpoints = _Endpoints(runs, name, pages)
    return [
        Route("/train", endpoints.page),
        Route("/train/runs", endpoints.list_runs),
        Route("/train/events", endpoints.follow),
        Route("/train/start", endpoints.start, methods=["POST"]),
        Route("/train/stop", endpoints.stop, methods=["POST"]),
        Route("/train/resume", endpoints.resume, methods=["POST"]),
    ]


class _Endpoints:
    def __init__(self, runs: TrainingRuns, name: str, pages: Pages) -> None:
        self._runs, self._name, self._pages = runs, name, pages
        self._streams = 0

    def page(self, request: Request) -> Response:
        sweeps = list_sweeps(self._runs.folder)
        chosen = request.query_params.get("sweep", "")
        if chosen and chosen not in sweeps:
            raise HTTPException(404, f"There is no sweep {chosen[:80]!r} in {self._runs.folder}.")
        table = read_sweep(sweeps[chosen]) if chosen else None
        own = self._runs.own
        return self._pages.render(
            request, "training.html.j2", name=self._name, recipes=sorted(recipes.names(), key=lambda n: n != "auto"),
            efforts=EFFORTS, named=list_named(), of_runs=self._runs.list_run_data(), has_own=own is not None,
            has_corrections=own is not None and own.patch is not None,
            folder=str(self._runs.folder), sweeps=list(sweeps), sweep=chosen, table=table,
            current="" if table else self._runs.find_current(),
        )  # fmt: skip

    def list_runs(self, _request: Request) -> StrictJSONResponse:
        return StrictJSONResponse(self._runs.list_runs())

    async def follow(self, request: Request) -> Response:
        name = request.query_params.get("run", "")
        await run_in_threadpool(self._runs.check_name, name)
        last = request.headers.get("last-event-id", "")
        start = int(last) if last.isdecimal() and len(last) < 16 else 0
        events = self._iter_events(request, name, start)
        return StreamingResponse(events, media_type="text/event-stream", headers=FRESH)

    async def _iter_events(self, request: Request, name: str, position: int) -> AsyncIterator[bytes]:
        """Yield the news of a run until it has ended, or only once if too many streams are open."""
        is_brief = self._streams >= MAX_STREAMS
        self._streams += 1
        try:
            end = time.monotonic() + (0 if is_brief else STREAM_S)
            yield f"retry: {FULL_RETRY_MS if is_brief else RETRY_MS}\n\n".encode()
            async for event in self._iter_changes(request, name, position, end):
                yield event
        finally:
            self._streams -= 1

    async def _iter_changes(self, request: Request, name: str, position: int, end: float) -> AsyncIterator[bytes]:
        sent = ""
        while True:
            # read the state before the log: if the run has ended, its log is then complete
            state = await run_in_threadpool(self._runs.describe, name)
            text, position = await run_in_threadpool(self._runs.read_log, name, position)
            if text:
                yield _format_event("log", text, position)
            if (content := jsonio.dumps(state)) != sent:
                sent = content
                yield _format_event("state", state, position)
            has_ended = state["status"] not in ACTIVE or self._runs.closing.is_set() or time.monotonic() >= end
            if has_ended or await request.is_disconnected():
                return
            await asyncio.sleep(POLL_S)

    async def start(self, request: Request) -> StrictJSONResponse:
        choice = _parse_choice(await read_json(request))
        name = await run_in_threadpool(self._runs.start, choice)
        return StrictJSONResponse({"run": name})

    async def stop(self, request: Request) -> StrictJSONResponse:
        return StrictJSONResponse(await self._change(request, self._runs.stop))

    async def resume(self, request: Request) -> StrictJSONResponse:
        return StrictJSONResponse(await self._change(request, self._runs.resume))

    async def _change(self, request: Request, change: Any) -> dict[str, Any]:
        name = (await read_json(request)).get("run")
        if not isinstance(name, str):
            raise HTTPException(400, "Expected the key run.")
        await run_in_threadpool(change, name)
        return {"run": name}


def _format_event(name: str, value: Any, position: int) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (position, name.encode(), jsonio.encode_text(jsonio.dumps(value)))


def _parse_choice(values: dict[str, Any]) -> TrainingChoice:
    """Return the choice made on a page; raise `HTTPException` for values of wrong types."""
    texts = {field.name for field in fields(TrainingChoice)} - {"epochs"}
    epochs = values.get("epochs")
    has_texts = all(isinstance(values.get(key, ""), str) and len(values.get(key, "")) < 4096 for key in texts)
    has_epochs = epochs is None or (type(epochs) is int and 0 < epochs <= MAX_EPOCHS)
    if not set(values) <= {*texts, "epochs"} or not has_texts or not has_epochs:
        raise HTTPException(400, "Expected the keys data, recipe, effort and time_limit as texts, epochs as a number.")
    return TrainingChoice(**{key: values[key].strip() for key in texts if key in values}, epochs=epochs)


def list_sweeps(folder: Path) -> dict[str, Path]:
    """Return the sweeps in a folder that have results, by name."""
    folders = (file.parent for file in sorted(folder.glob("*/sweep.json")))
    return {sweep.name: sweep for sweep in folders if (sweep / "results.csv").is_file()}


def read_sweep(folder: Path) -> dict[str, Any]:
    """Return the columns and rows of the results of a sweep, best first, and the axes of its plot, as columns.

    The axes are the settings and then the monitored metric, if they differ between trials. Fractions have four digits.
    """
    try:
        text = _io.read_regular(folder / "results.csv", MAX_TABLE).decode("utf-8-sig", errors="replace")
        columns, *rows = list(csv.reader(io.StringIO(text)))
    except (OSError, ValueError, csv.Error) as error:
        raise HTTPException(400, f"The results of the sweep {folder.name} cannot be read: {error}.") from None
    count = columns.index("accuracy") if "accuracy" in columns else len(columns)
    rows = [row for row in rows[:MAX_TRIALS] if len(row) == len(columns)]
    settings = [i for i in range(3, count) if columns[i] not in {"low", "high"}]  # the others are the metric's interval
    axes = [i for i in (*settings, 2) if len({row[i] for row in rows if row[2]}) > 1]
    return {"columns": columns, "rows": [[_shorten(cell) for cell in row] for row in rows], "axes": axes}


def _shorten(cell: str) -> str:
    return f"{float(cell):.4g}" if FRACTION.fullmatch(cell) else cell
