"""The studio's page and its requests: a list of images, their rows and pixels, and corrections."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from sightline.data.types import SPLITS
from sightline.errors import OutputError, SightlineError
from sightline.escaping import CsvWriter, escape_cell
from sightline.report.templates import PAGES_PACKAGE
from sightline.studio import (
    comparing,
    embedding_map,
    label_results,
    labeling,
    look_alikes,
    mask_images,
    mask_results,
    mask_trial,
    network,
    results,
    training,
    trial,
)
from sightline.studio.contents import Studio
from sightline.studio.corrections import Click
from sightline.studio.library import Library
from sightline.studio.network import NetworkAccess
from sightline.studio.pages import (
    FOLDER,
    FRESH,
    Pages,
    StrictJSONResponse,
    read_json,
    respond_with_error,
    respond_with_image,
    translate_state,
)
from sightline.studio.protection import ProtectionMiddleware, make_token
from sightline.studio.query import Query

MAX_ROWS = 500  # per request
MAX_ID = 64  # characters in the id of a change
PAGES_OF_RUN = {"/results": "results", "/compare": "compare", "/map": "map", "/try": "trial"}


def create_app(studio: Studio, access: NetworkAccess | None = None) -> Starlette:
    """Return the ASGI application.

    ``GET /`` is the page; ``GET /order`` returns the positions of the images that match a `Query`, uint32
    little-endian; ``GET /images?ids=1,2`` returns their rows; ``GET /thumbnails/HASH.webp`` and
    ``GET /large/HASH.webp`` return their pixels, at addresses whose content never changes;
    ``GET /masks/KEY/HASH.png`` and ``GET /large-masks/KEY/HASH.png`` return the masks to lay over them.
    ``GET /state?since=N`` returns counts, the progress of the checks, and the rows that changed since revision N.
    ``POST /corrections`` and ``POST /undo`` change the patch file, once for each id that a page sends as ``request``.
    ``POST /check`` starts the checks, and ``POST /folders`` writes the corrected images as class folders of links
    beside the patch file. ``GET /images.csv`` is the corrected list of images.

    Pages in modules of their own, such as ``GET /results``, exist only for a run. With `access`, other devices can use
    the studio, and ``GET /phone`` shows its address.

    Errors are ``{"error": message}``.
    """
    token = make_token()
    of_data = {} if studio.labeling is None else {"/label": "label-page"}
    of_run = {} if studio.model is None else PAGES_OF_RUN
    of_runs = {} if studio.training is None else {"/train": "train-page"}
    of_network = {} if access is None else {"/phone": "phone"}
    pages = Pages(token, {"/": "list"} | of_data | of_run | of_runs | of_network)
    endpoints = _Endpoints(studio, pages)
    routes = [
        Route("/", endpoints.page),
        Route("/order", endpoints.order),
        Route("/images", endpoints.images),
        Route("/images.csv", endpoints.table),
        Route("/thumbnails/{sha256}.webp", endpoints.thumbnail),
        Route("/large/{sha256}.webp", endpoints.large_image),
        Route("/state", endpoints.state),
        Route("/corrections", endpoints.correct, methods=["POST"]),
        Route("/undo", endpoints.undo, methods=["POST"]),
        Route("/check", endpoints.start_check, methods=["POST"]),
        Route("/folders", endpoints.write_folders, methods=["POST"]),
        *([] if studio.masks is None else mask_images.make_routes(studio.masks)),
        *_make_run_routes(studio, pages),
        *_make_labeling_routes(studio, pages),
        *([] if studio.look_alikes is None else look_alikes.make_routes(studio.look_alikes, studio.library)),
        *([] if studio.training is None else training.make_routes(studio.training, studio.name, pages)),
        *_make_network_routes(studio, pages, access),
        Mount("/static", StaticFiles(directory=FOLDER / "static", packages=[PAGES_PACKAGE])),
    ]
    return Starlette(
        routes=routes,
        exception_handlers={HTTPException: _answer_error, SightlineError: _answer_error},
        middleware=[Middleware(ProtectionMiddleware, token=token, pages=pages, access=access)],
    )


def _make_run_routes(studio: Studio, pages: Pages) -> list[Route]:
    model, library, name = studio.model, studio.library, studio.name
    if model is None:
        return []
    if studio.masks is not None and model.predicts_masks:
        of_task = [
            *mask_results.make_routes(model, library, studio.masks, name, pages),
            *mask_trial.make_routes(model, library, name, pages),
        ]
    else:
        of_results = (
            label_results.make_routes(model, library, name, pages)
            if library.has_several_labels
            else results.make_routes(model, name, pages)
        )
        of_task = [*of_results, *trial.make_routes(model, library, name, pages)]
    return [
        *of_task,
        *comparing.make_routes(model, library, name, pages, studio.compared),
        *embedding_map.make_routes(model, library, name, pages),
    ]


def _make_labeling_routes(studio: Studio, pages: Pages) -> list[Route]:
    if studio.labeling is None:
        return [] if studio.masks is None else [mask_images.make_label_route(studio.name, pages)]
    return labeling.make_routes(studio.labeling, studio.name, pages, str(studio.corrections.path))


def _make_network_routes(studio: Studio, pages: Pages, access: NetworkAccess | None) -> list[Route]:
    if access is None:
        return []
    return network.make_routes(access, studio.name, pages, has_model=studio.model is not None)


class _Endpoints:
    """The handlers of the routes; functions that are not coroutines run in threads."""

    def __init__(self, studio: Studio, pages: Pages) -> None:
        self._studio, self._pages = studio, pages

    def page(self, request: Request) -> Response:
        library, model = self._studio.library, self._studio.model
        return self._pages.render(
            request, "library.html.j2", name=self._studio.name, splits=SPLITS,
            has_predictions=library.has_predictions, has_splits=library.has_splits, can_move=library.can_move,
            has_energies=library.has_energies, slices=library.slices,
            has_unlabeled=library.has_unlabeled, several=library.has_several_labels,
            patch=str(self._studio.corrections.path), known_files=self._studio.known_files, masks=self._studio.masks,
            has_heat_maps=model is not None and not model.predicts_masks,
            predicts_masks=model is not None and model.predicts_masks,
            has_nearest=model is not None or self._studio.look_alikes is not None,
        )  # fmt: skip

    def order(self, request: Request) -> Response:
        filters = {name: value for name, value in request.query_params.items() if name != "lang"}
        ids = self._studio.library.list_ids(Query.from_params(filters))
        return Response(np.array(ids, "<u4").tobytes(), media_type="application/octet-stream", headers=FRESH)

    def images(self, request: Request) -> StrictJSONResponse:
        return StrictJSONResponse(self._studio.library.describe(_parse_ids(request.query_params.get("ids", ""))))

    def table(self, _request: Request) -> Response:
        self._studio.library.update(self._studio.corrections.read_changes()[1])
        headers = FRESH | {"Content-Disposition": 'attachment; filename="images.csv"'}
        return Response(
            _write_table(self._studio.library, raw=self._studio.raw_csv),
            media_type="text/csv; charset=utf-8",
            headers=headers,
        )

    def thumbnail(self, request: Request) -> Response:
        return respond_with_image(self._studio.thumbnails.encode(request.path_params["sha256"]))

    def large_image(self, request: Request) -> Response:
        return respond_with_image(self._studio.thumbnails.encode(request.path_params["sha256"], large=True))

    def state(self, request: Request) -> StrictJSONResponse:
        since = request.query_params.get("since", "0")
        number = int(since) if since.isdecimal() and len(since) < 12 else 0
        revision, changed = self._studio.corrections.read_changes(number)
        self._studio.library.update(changed)
        return self._describe_state(request, changed, revision=revision)

    async def correct(self, request: Request) -> StrictJSONResponse:
        values = await read_json(request)
        ids, edit, to = values.get("ids"), values.get("edit"), values.get("to")
        is_list = isinstance(ids, list) and all(type(i) is int for i in ids)
        if not is_list or not isinstance(edit, str) or not isinstance(to, str | None):
            raise HTTPException(400, "Expected the keys ids, edit and to.")
        positions, change = list(dict.fromkeys(cast("list[int]", ids))), _parse_change(values)
        apply = self._studio.corrections.apply
        return await run_in_threadpool(lambda: self._confirm(request, apply(positions, edit, to, change)))

    async def undo(self, request: Request) -> StrictJSONResponse:
        values = await read_json(request)
        number, change = values.get("click"), _parse_change(values)
        if number is not None and type(number) is not int:
            raise HTTPException(400, "Expected the key click.")
        undo = self._studio.corrections.undo
        return await run_in_threadpool(lambda: self._confirm(request, undo(number, change)))

    def start_check(self, request: Request) -> StrictJSONResponse:
        self._studio.check.start()
        return self._describe_state(request, ())

    def write_folders(self, request: Request) -> StrictJSONResponse:
        self._studio.folders.start()
        return self._describe_state(request, ())

    def _confirm(self, request: Request, click: Click) -> StrictJSONResponse:
        self._studio.library.update(click.after)
        return self._describe_state(request, list(click.after), click=click.number)

    def _describe_state(self, request: Request, changed: Sequence[int], **values: Any) -> StrictJSONResponse:
        """Return the whole state and the rows of the first changed images; a page loads more as needed."""
        return StrictJSONResponse({
            "corrections": len(self._studio.corrections),
            "earlier": self._studio.corrections.has_earlier,
            "check": translate_state(request, self._studio.check.state),  # before the counts, which use its findings
            "folders": translate_state(request, self._studio.folders.state),
            "counts": self._studio.library.count_values(),
            "rows": self._studio.library.describe(changed[:MAX_ROWS]),
            "changed": len(changed),
        } | values)  # fmt: skip


def _parse_change(values: Mapping[str, Any]) -> str:
    """Return the id that a page sent with a change, or ""."""
    change = values.get("request", "")
    if not isinstance(change, str) or len(change) > MAX_ID:
        raise HTTPException(400, f"Expected a text of at most {MAX_ID} characters as the key request.")
    return change


def _parse_ids(text: str) -> list[int]:
    ids = text.split(",") if text else []
    if len(ids) > MAX_ROWS or not all(i.isdecimal() and len(i) < 12 for i in ids):
        raise HTTPException(400, f"ids is {text[:40]!r}: expected up to {MAX_ROWS} numbers.")
    return [int(i) for i in ids]


def _write_table(library: Library, *, raw: bool) -> bytes:
    """Return the images that are not dropped, with their corrected classes (or masks) and splits, as CSV."""
    file = io.StringIO()
    writer = CsvWriter(file)
    columns = ["path", "mask" if library.has_masks else "label", *(["split"] if library.has_splits else [])]
    writer.write_row(columns)
    for row in library.iter_kept():
        writer.write_row([row[column] if raw else escape_cell(row[column]) for column in columns])
    return file.getvalue().encode(errors="backslashreplace")


async def _answer_error(request: Request, error: Exception) -> StrictJSONResponse:
    if isinstance(error, HTTPException):
        return respond_with_error(request, error.detail, error.status_code)
    return respond_with_error(request, str(error), 500 if isinstance(error, OutputError) else 400)
