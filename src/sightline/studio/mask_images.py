"""`MaskImages`: masks in the colors of their classes, as layers over the images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline import jsonio
from sightline.data.targets import MASKS
from sightline.data.types import Index
from sightline.errors import ImageError
from sightline.inference.mask_colors import list_colors
from sightline.inference.masks import encode_mask, resize_mask
from sightline.preprocessing import fit_size
from sightline.studio.pages import Pages, respond_with_image
from sightline.studio.thumbnails import Versions

PNG = "image/png"


class MaskImages(Versions):
    """Versions of masks, as PNG files of the size of the thumbnails, in which pixels without a class are transparent.

    Attributes:
        classes: The classes of the masks, in the order of their colors.
        colors: The color of each class, such as ``#e69f00``, as in reports and ``predict --masks``.
        key: Identifies the classes and the values of the masks, so that addresses change with them.
    """

    def __init__(self, index: Index, classes: Sequence[str] = ()) -> None:
        """`index` has masks; `classes` are by default those of its images, in the order used by training."""
        assert index.read_mask is not None
        assert index.mask_classes is not None
        names = {name for image in index.images for name in MASKS.list_classes(image.label)}
        order = index.class_order if {*index.class_order} == names else ()
        self.classes = tuple(classes) or MASKS.order_classes(names, order)
        self.colors = dict(zip(self.classes, list_colors(len(self.classes)), strict=True))
        self._index, self._read, self._table = index, index.read_mask, index.mask_classes
        facts = [self.classes, sorted(self._table.names.items()), self._table.are_colors]
        self.key = hashlib.sha256(jsonio.encode_text(jsonio.dumps(facts))).hexdigest()[:12]
        super().__init__({i: image.mask.sha256 for i, image in enumerate(index.images) if image.mask})

    def _encode(self, position: int, side: int) -> bytes | None:
        image = self._index.images[position]
        try:
            mask = self._table.encode(self._table.decode(self._read(position)), self.classes)
        except (ImageError, OSError):
            return None
        small = resize_mask(mask, *fit_size(image.width, image.height, side))
        return encode_mask(small, len(self.classes), is_layer=True)


def make_routes(masks: MaskImages) -> list[Route]:
    """Return the routes of the masks, small and large, at addresses whose content never changes."""

    def find(request: Request, *, large: bool) -> Response:
        known = request.path_params["key"] == masks.key
        return respond_with_image(masks.encode(request.path_params["sha256"], large=large) if known else None, PNG)

    return [
        Route("/masks/{key}/{sha256}.png", lambda request: find(request, large=False)),
        Route("/large-masks/{key}/{sha256}.png", lambda request: find(request, large=True)),
    ]


def make_label_route(name: str, pages: Pages) -> Route:
    """Return the route of the labeling page, which explains that it does not support masks."""

    def page(request: Request) -> Response:
        return pages.render(request, "sentence.html.j2", name=name, title="label-page", sentence="label-masks")

    return Route("/label", page)
