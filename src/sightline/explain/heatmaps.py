"""Heat maps of any predictor by any method."""

from __future__ import annotations

import weakref
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sightline.callbacks import Progress, no_progress
from sightline.errors import UsageError, suggest
from sightline.explain import occlusion, rise
from sightline.explain.gradcam import GradCam
from sightline.explain.localization import normalize_heat
from sightline.inference.predictor import Predictor
from sightline.inference.runtimes.keras import KerasPredictor

Method = Literal["gradcam", "gradcam++", "occlusion", "rise"]
METHODS: tuple[Method, ...] = get_args(Method)

_compiled: weakref.WeakKeyDictionary[Any, GradCam] = weakref.WeakKeyDictionary()  # by predictor


def resolve_method(name: str | None, predictor: Predictor) -> Method:
    """Return `name` as a method that `predictor` supports; None: Grad-CAM for a Keras model, else occlusion.

    Raises `UsageError` for an unknown method, and for one that needs a Keras model.
    """
    keras = isinstance(predictor, KerasPredictor)
    if name is None:
        return "gradcam" if keras else "occlusion"
    for method in METHODS:
        if name == method:
            if method.startswith("gradcam") and not keras:
                raise UsageError(
                    "Grad-CAM needs gradients, which an exported model does not have: use the run that it came from, "
                    "or --method occlusion or rise."
                )
            return method
    raise UsageError(f"There is no method {name!r}.{suggest(name, METHODS)}")


def compute_heat_maps(
    predictor: Predictor,
    pixels: NDArray[np.uint8],
    class_indices: NDArray[np.int64],
    method: Method,
    *,
    seed: int = 0,
    progress: Progress = no_progress,
) -> NDArray[np.float32]:
    """Return float32 [N, H, W] in [0, 1]: the evidence in `pixels` [N, H, W, C] for the classes `class_indices` [N]."""
    if not len(pixels):
        return np.zeros(pixels.shape[:3], np.float32)
    if method in {"gradcam", "gradcam++"}:
        assert isinstance(predictor, KerasPredictor)
        if predictor not in _compiled:
            _compiled[predictor] = GradCam(predictor.model)
        return normalize_heat(
            _compiled[predictor].heat(pixels, class_indices, plus=method == "gradcam++", progress=progress)
        )
    evaluations_per_image = occlusion.count_evaluations(*pixels.shape[1:3]) if method == "occlusion" else rise.MASKS
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(method, done, evaluations_per_image * len(pixels))

    if method == "occlusion":
        maps = [
            occlusion.occlusion_map(predictor, p, int(k), advance) for p, k in zip(pixels, class_indices, strict=True)
        ]
    else:
        maps = [rise.rise_map(predictor, p, int(k), seed, advance) for p, k in zip(pixels, class_indices, strict=True)]
    return normalize_heat(np.stack(maps))
