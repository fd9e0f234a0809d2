"""Heat maps on demand: the evidence for a class over the image, one at a time."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from sightline import jsonio
from sightline.api import Classifier
from sightline.api.explanation import explain_pixels
from sightline.errors import ModelError
from sightline.explain.explanation import Explanation
from sightline.explain.localization import map_to_original
from sightline.inference.predictor import NOT_FINITE_REASON
from sightline.preprocessing import PreprocessingSpec, inspect_image
from sightline.report.doctor_page import encode_thumbnail
from sightline.report.heatmap_plot import overlay_heat

MAX_SIDE = 900  # pixels of the longer side of what is shown
MAX_WAITING = 4  # requests, the one that is computed included: each takes 154 evaluations of the model


@dataclass(frozen=True, slots=True)
class HeatMap:
    """An `explanation`, and the image [H, W, 3] with its heat as it is shown."""

    explanation: Explanation
    pixels: NDArray[np.uint8]

    def to_dict(self) -> dict[str, Any]:
        """Return the class, its probability, the faithfulness, and the image as WebP in base64, as JSON values."""
        e = self.explanation
        return {
            "label": e.label,
            "probability": e.probability,
            "faithfulness": jsonio.to_plain(e.faithfulness),
            "image": base64.b64encode(encode_thumbnail(self.pixels)).decode(),
        }


def compute_heat_map(classifier: Classifier, content: bytes | NDArray[np.uint8], label: str | None) -> HeatMap:
    """Explain an image, encoded or as pixels; raises `ImageError` and, for an unknown class, `UsageError`."""
    spec = classifier.preprocess
    if isinstance(content, bytes):
        header = inspect_image(content, spec.page, spec.max_megapixels)
        width, height = header.width, header.height
    else:
        height, width = content.shape[:2]
    explanation = explain_pixels(classifier, classifier.predictor, _decode(spec, content), width, height, label=label)
    scale = min(1.0, MAX_SIDE / max(width, height))
    width, height = (max(1, round(scale * length)) for length in (width, height))
    if explanation.heat is None:
        raise ModelError(f"The image cannot be explained: {NOT_FINITE_REASON}.")
    image = _decode(spec.with_size(height, width), content)
    visible_box, _ = spec.compute_placement(width, height)
    heat = map_to_original(explanation.heat, spec, width, height)
    return HeatMap(explanation, overlay_heat(image, heat, visible_box))


def _decode(spec: PreprocessingSpec, content: bytes | NDArray[np.uint8]) -> NDArray[np.uint8]:
    return spec.decode(content) if isinstance(content, bytes) else spec.apply(content)


class HeatMapQueue:
    """Computes one heat map at a time in a thread, and refuses more than a few that wait."""

    def __init__(self) -> None:
        self._turn, self._waiting = asyncio.Semaphore(1), 0

    async def run(self, compute: Callable[[], HeatMap]) -> HeatMap:
        """Return what `compute` returns, in a thread; raises `HTTPException` if too many wait."""
        if self._waiting >= MAX_WAITING:
            raise HTTPException(503, "Several heat maps are being computed: try again in a moment.")
        self._waiting += 1
        try:
            async with self._turn:
                return await run_in_threadpool(compute)
        finally:
            self._waiting -= 1
