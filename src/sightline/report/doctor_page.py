"""The page of `sightline doctor`: findings with thumbnails in one self-contained file."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sightline.data.checks.audit import Audit
from sightline.report import templates

MAX_ITEMS = 12  # groups or images per finding
MAX_MEMBERS = 6  # images per group
MAX_BYTES = 3 << 20  # total bytes of thumbnails: below 5 MB in base64


def encode_thumbnail(pixels: NDArray[np.uint8]) -> bytes:
    """Return pixels uint8 [H, W, 3] as a small WebP file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", quality=70)
    return stream.getvalue()


def render_html(audit: Audit, thumbnails: Mapping[str, bytes]) -> str:
    """Return the page; `thumbnails` maps the path of an image to a WebP file."""
    images: dict[str, str] = {}
    room = MAX_BYTES
    for path, data in thumbnails.items():
        room -= len(data)
        if room < 0:
            break
        images[path] = templates.encode_image(data)
    return templates.render_page(
        "doctor.html.j2",
        audit=audit,
        findings=audit.findings,
        images=images,
        max_shown=MAX_ITEMS,
        max_members=MAX_MEMBERS,
    )
