"""The server's web page: choose an image, see its prediction and heat map. Its files are in ``static``."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from sightline.report.templates import PAGES_PACKAGE
from sightline.serve.access import PAGE_FILES

FOLDER = Path(__file__).parent / "static"
HEADERS = {
    # Load nothing from elsewhere and nothing inline; images are shown from memory.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # revalidated with its ETag, as an update may serve another version
}


class _PageFiles(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file with the headers of the page."""
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def make_routes() -> list[BaseRoute]:
    """Return the routes of the page and its files."""
    files = _PageFiles(directory=FOLDER, packages=[PAGES_PACKAGE])

    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    return [Route("/", page), Mount(PAGE_FILES, files)]
