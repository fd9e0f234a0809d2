"""Metadata, hash and operations of an ONNX file, checked against the `onnx` package."""

from __future__ import annotations

import hashlib

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import ModelError
from sightline.inference.safety import onnx_file


def make_model(metadata: dict[str, str]) -> onnx.ModelProto:
    """A small file with its fields in the order of protocol buffers."""
    node = onnx.helper.make_node("Identity", ["a"], ["b"])
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N"]) for n in "ab"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", value[:1], value[1:]), producer_name="t")
    onnx.helper.set_model_props(model, metadata)
    return model


@given(st.dictionaries(st.text(), st.text(), max_size=4), st.dictionaries(st.text(), st.text(max_size=300), max_size=4))
def test_metadata_are_read_and_replaced_as_the_library_does(old: dict[str, str], new: dict[str, str]) -> None:
    model_bytes = make_model(old)
    data = model_bytes.SerializeToString()
    assert onnx_file.read_metadata(data) == old
    changed = onnx_file.replace_metadata(data, new)
    assert onnx_file.read_metadata(changed) == new
    parsed = onnx.load_model_from_string(changed)
    assert {p.key: p.value for p in parsed.metadata_props} == new
    assert parsed.graph == model_bytes.graph
    assert onnx_file.hash_graph(changed) == onnx_file.hash_graph(data)
    assert onnx_file.hash_graph(data) == hashlib.sha256(model_bytes.graph.SerializeToString()).hexdigest()


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_model_error(data: bytes) -> None:
    for read in (onnx_file.read_metadata, onnx_file.hash_graph, onnx_file.check_graph):
        try:
            read(data)
        except ModelError:
            continue


def test_our_operations_pass_and_others_do_not() -> None:
    model_bytes = make_model({})
    onnx_file.check_graph(model_bytes.SerializeToString())
    model_bytes.graph.node[0].domain = "com.example"
    with pytest.raises(ModelError, match=r"'Identity' of com\.example"):
        onnx_file.check_graph(model_bytes.SerializeToString())
