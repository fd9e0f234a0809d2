"""The classifier named ``imagenet``: the default backbone with its published head, for 1,000 classes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from importlib import metadata, resources
from pathlib import Path

from sightline import _io
from sightline.config import ModelConfig
from sightline.data import cache
from sightline.errors import ModelError, check_installed
from sightline.export import keras_to_onnx
from sightline.inference import bundle
from sightline.inference.device_choice import Device
from sightline.inference.manifest import SCHEMA_VERSION, Manifest
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.models import pretrained, registry
from sightline.models.build import ModelSpec, build_model
from sightline.models.describe import count_parameters, weights_sha256
from sightline.preprocessing import PreprocessingSpec

MODEL = "efficientnet-lite0"
# larger than in training: see benchmarks/results/transfer.md
PREPROCESS = PreprocessingSpec(288, 288, 3, resize="crop", interpolation="bicubic")


def read_class_names() -> tuple[str, ...]:
    """Return the names of the 1,000 classes, in the order of the logits."""
    text = (resources.files("sightline.models") / "imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if not line.startswith("#"))


def load_or_build(
    threads: int = 0, device: Device = "cpu", on_message: Callable[[str], None] | None = None
) -> tuple[Path, bundle.Bundle, OnnxPredictor]:
    """Load the bundle of the classifier, a ``.onnx`` file in the cache that Keras builds on first use.

    `on_message` receives a line before it is built.

    Raises `MissingExtraError` if the bundle has to be built and Keras or the weights are not installed, and the errors
    of `bundle.move_to_device`.
    """
    path = cache.cache_folder() / f"imagenet-{_cache_key()}.onnx"
    loaded = _load_built(path, threads)
    if loaded is None:
        if on_message is not None:
            on_message("Building the imagenet classifier from the installed weights, once.")
        _io.write_atomic(path, _build().model, "Set SIGHTLINE_CACHE to a folder that can be written.")
        loaded = bundle.load(path, threads)
    return path, loaded[0], bundle.move_to_device(*loaded, device)


def _load_built(path: Path, threads: int) -> tuple[bundle.Bundle, OnnxPredictor] | None:
    """Return the bundle that was built before; None if there is none, or it is damaged."""
    if not (path.is_file() and _is_own(path)):
        return None
    try:
        return bundle.load(path, threads)
    except ModelError:
        return None


def _is_own(path: Path) -> bool:
    """Return whether the user or root wrote the file: in a folder that others may write to, it can be anything."""
    return not hasattr(os, "getuid") or path.lstat().st_uid in {0, os.getuid()}


def _cache_key() -> str:
    parts = (metadata.version("sightline"), SCHEMA_VERSION, registry.get_entry(MODEL), PREPROCESS, read_class_names())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _build() -> bundle.Bundle:
    check_installed("keras", "onnx", purpose="Building the imagenet classifier, once,")
    height, width, channels = PREPROCESS.shape
    classes, entry = read_class_names(), registry.get_entry(MODEL)
    weights = pretrained.find_weights(entry, "imagenet", None, height, width)
    network = build_model(ModelSpec(ModelConfig(MODEL), height, width, channels, len(classes), weights=weights))
    manifest = Manifest(
        MODEL, classes, PREPROCESS,
        parameters=count_parameters(network.model), weights_sha256=weights_sha256(network.model),
        data={"name": "ImageNet (ILSVRC 2012)"}, version=metadata.version("sightline"),
    )  # fmt: skip
    return bundle.make(manifest, keras_to_onnx.convert_model(network.model), {})
