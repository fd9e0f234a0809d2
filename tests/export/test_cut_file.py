"""A file is cut after the layers that another one holds, if it begins with them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest

from networks import build_network, random_images
from sightline import backend
from sightline.config import StageConfig
from sightline.export import keras_to_onnx
from sightline.export.cut_file import cut_after
from sightline.inference.runtimes.onnx_sessions import create_session
from sightline.models.head import OUTPUTS
from sightline.models.registry import ENTRIES
from sightline.training import stages

NAMES = ("cifar10-deep", "efficientnet-lite0", "fashion-cnn")


@cache
def convert(name: str) -> tuple[bytes, bytes]:
    """Return the files of a whole network and of its frozen layers."""
    network = build_network(name)
    tensor = stages.find_freeze_boundary(network, StageConfig(unfreeze=0))
    frozen = backend.keras().Model(network.model.input, tensor)
    return keras_to_onnx.convert_model(network.model), keras_to_onnx.convert_layers(frozen)


@pytest.mark.parametrize("name", NAMES)
def test_both_pieces_compute_what_the_whole_does(name: str) -> None:
    whole, first = convert(name)
    rest = cut_after(whole, first)
    assert rest is not None
    assert len(rest.file) + len(first) < 1.1 * len(whole), "no weight is in both"
    pixels = random_images(3, ENTRIES[name].min_input_size)
    (features,) = create_session(first, 1).run(["out"], {"pixels": pixels})
    outputs = create_session(rest.file, 1).run(list(OUTPUTS), {rest.source: features})
    for output, expected in zip(outputs, create_session(whole, 1).run(list(OUTPUTS), {"pixels": pixels}), strict=True):
        np.testing.assert_array_equal(output, expected)


def change(file: bytes, edit: Any) -> bytes:
    model = onnx.load_model_from_string(file)
    edit(model.graph)
    return bytes(model.SerializeToString())


def change_weight(graph: Any) -> None:
    raw = bytearray(graph.initializer[0].raw_data)
    raw[0] ^= 1
    graph.initializer[0].raw_data = bytes(raw)


def swap_nodes(graph: Any) -> None:
    nodes = [graph.node[1], graph.node[0], *graph.node[2:]]
    del graph.node[:]
    graph.node.extend(nodes)


def use_inner_result(graph: Any) -> None:
    graph.node[-1].input[0] = graph.node[2].output[0]


def change_input(graph: Any) -> None:
    graph.input[0].type.tensor_type.shape.dim[1].dim_value += 1


@pytest.mark.parametrize("edit", [change_weight, swap_nodes, use_inner_result, change_input])
def test_a_file_that_does_not_begin_alike_is_not_cut(edit: Any) -> None:
    whole, first = convert("fashion-cnn")
    assert cut_after(change(whole, edit), first) is None
    assert cut_after(whole, convert("cifar10-deep")[1]) is None
