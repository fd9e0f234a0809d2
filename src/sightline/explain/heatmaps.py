"""Heat maps of any predictor by any method."""

from __future__ import annotations

import weakref
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sightline.callbacks import Progress, no_progress
from sightline.errors import UsageError, suggest
from sightline.explain.gradcam import GradCam, KerasGradCam
from sightline.explain.localization import normalize_heat
from sightline.explain.masking import MASKS, count_evaluations, occlusion_map, rise_map
from sightline.explain.onnx_gradcam import OnnxGradCam, PooledHead
from sightline.inference.predictor import Predictor
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.models.entry import Activation

Method = Literal["gradcam", "gradcam++", "occlusion", "rise"]
METHODS: tuple[Method, ...] = get_args(Method)
MASK_METHODS: tuple[Method, ...] = ("gradcam", "occlusion")
"""The methods for a class of pixels: Grad-CAM++ was derived for one logit, and RISE hides the very pixels explained."""

_gradcams: weakref.WeakKeyDictionary[Any, GradCam | None] = weakref.WeakKeyDictionary()
"""By predictor; the values do not keep the predictors alive."""


def find_gradcam(predictor: Predictor) -> GradCam | None:
    """Return Grad-CAM of `predictor`, made once; None for an exported model whose head is not one dense layer."""
    if isinstance(predictor, KerasPredictor | OnnxPredictor) and predictor not in _gradcams:
        if isinstance(predictor, KerasPredictor):
            _gradcams[predictor] = KerasGradCam(predictor.model)
        else:
            head = PooledHead.find(predictor.file)
            _gradcams[predictor] = None if head is None else OnnxGradCam(predictor, head)
    return _gradcams.get(predictor)


def share_gradcam(wrapper: Predictor, predictor: OnnxPredictor) -> None:
    """Let a `wrapper` that passes its images on to `predictor` use its Grad-CAM, which has a session of its own."""
    _gradcams[wrapper] = find_gradcam(predictor)


def has_gradcam(predictor: Predictor) -> bool:
    """Return whether there is Grad-CAM of `predictor`."""
    return isinstance(predictor, KerasPredictor) or find_gradcam(predictor) is not None


def resolve_method(name: str | None, predictor: Predictor, *, are_masks: bool = False) -> Method:
    """Return `name` as a method that `predictor` supports; None: Grad-CAM if it does, else occlusion.

    `are_masks`: it predicts masks. Raises `UsageError` for an unknown method, for one that needs a Keras model, and for
    one that has no meaning for masks.
    """
    if name is None:
        return "gradcam" if has_gradcam(predictor) else "occlusion"
    for method in METHODS:
        if name == method:
            if are_masks and method not in MASK_METHODS:
                raise UsageError(
                    f"The method {method} is for the class of a whole image, and this model predicts masks: use "
                    "--method gradcam or occlusion."
                )
            if method.startswith("gradcam") and not has_gradcam(predictor):
                raise UsageError(
                    "Grad-CAM cannot be computed from this exported model: that needs an ONNX file whose head is one "
                    "dense layer behind pooling. Use the run that it came from, or --method occlusion or rise."
                )
            return method
    raise UsageError(f"There is no method {name!r}.{suggest(name, METHODS)}")


def compute_heat_maps(
    predictor: Predictor,
    pixels: NDArray[np.uint8],
    class_indices: NDArray[np.int64],
    method: Method,
    *,
    activation: Activation = "softmax",
    regions: NDArray[np.bool_] | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> NDArray[np.float32]:
    """Return float32 [N, H, W] in [0, 1]: the evidence in `pixels` [N, H, W, C] for the classes `class_indices` [N].

    `activation` turns the logits into probabilities. If each pixel has a class, the evidence is for the class in the
    pixels of `regions` [N, H, W]; an empty region has none.
    """
    if not len(pixels):
        return np.zeros(pixels.shape[:3], np.float32)
    if method in {"gradcam", "gradcam++"}:
        gradcam = find_gradcam(predictor)
        assert gradcam is not None
        return normalize_heat(
            gradcam.heat(pixels, class_indices, plus=method == "gradcam++", regions=regions, progress=progress)
        )
    evaluations_per_image = count_evaluations(*pixels.shape[1:3]) if method == "occlusion" else MASKS
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(method, done, evaluations_per_image * len(pixels))

    if method == "occlusion":
        maps = []
        for i, class_index in enumerate(class_indices.tolist()):
            region = None if regions is None else regions[i]
            if region is None or region.any():
                maps.append(occlusion_map(predictor, pixels[i], class_index, advance, activation, region))
            else:
                maps.append(np.zeros(pixels.shape[1:3]))
                advance(evaluations_per_image)
    else:
        maps = [rise_map(predictor, p, int(k), seed, advance) for p, k in zip(pixels, class_indices, strict=True)]
    return normalize_heat(np.stack(maps))
