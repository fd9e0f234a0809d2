"""Bundles that need no training framework and no time: linear models, by default for 8x8 pixels."""

from __future__ import annotations

import math

import numpy as np

import onnx_graphs
from sightline.inference import bundle
from sightline.inference.bundle import Bundle
from sightline.inference.manifest import Manifest, ReferenceExample
from sightline.inference.reference_examples import hash_pixels
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.preprocessing import PreprocessingSpec
from synthetic_images import encode_png

SPEC = PreprocessingSpec(8, 8)


def make_bundle(seed: int, classes: tuple[str, ...] = ("ant", "bee", "cat"), spec: PreprocessingSpec = SPEC) -> Bundle:
    """Return a bundle whose weights, and hence predictions and hash, depend on `seed` (up to 15)."""
    inputs = math.prod(spec.shape)
    weights = np.random.default_rng(seed).normal(0, 0.2 / inputs, (inputs, len(classes)))
    graph = onnx_graphs.make_linear_classifier(weights)
    content = encode_png(seed)
    pixels = spec.decode(content)
    answer = tuple(map(float, OnnxPredictor(graph, classes, spec).probabilities(pixels[None])[0]))
    example = ReferenceExample("reference/0.png", classes[0], hash_pixels(pixels), answer)
    manifest = Manifest("linear", classes, spec, reference_examples=(example,), weights_sha256=f"{seed:x}" * 64)
    return bundle.make(manifest, graph, {example.file: content})
