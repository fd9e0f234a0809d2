"""Checks of a LiteRT model after parsing, which verifies every offset in the file, and before its first run."""

from __future__ import annotations

from typing import Any

from sightline._keras import graphs
from sightline.errors import ModelError
from sightline.inference.safety.limits import check_operation_count
from sightline.preprocessing.spec import MAX_SIDE

ALLOWED_OPERATIONS = frozenset(
    {
        "ABS", "ADD", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CAST", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D",
        "DEQUANTIZE", "DIV", "ELU", "EXP", "EXPAND_DIMS", "FULLY_CONNECTED", "GATHER", "GELU", "GREATER", "HARD_SWISH",
        "L2_NORMALIZATION", "LEAKY_RELU", "LOG", "LOGISTIC", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MUL", "NEG",
        "PACK", "PAD", "PADV2", "POW", "PRELU", "QUANTIZE", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "RELU", "RELU6",
        "RELU_0_TO_1", "RELU_N1_TO_1", "RESHAPE", "RESIZE_BILINEAR", "REVERSE_V2", "RSQRT", "SELECT_V2", "SHAPE",
        "SLICE", "SOFTMAX", "SPLIT", "SPLIT_V", "SQRT", "SQUARE", "SQUARED_DIFFERENCE", "SQUEEZE", "STRIDED_SLICE",
        "SUB", "SUM", "TANH", "TRANSPOSE", "TRANSPOSE_CONV", "UNPACK",
    }
)  # fmt: skip
"""The operations that Keras layers become: no loops, branches, custom operations or sizes computed from data.

The size of ``RESIZE_BILINEAR`` is an input, which must be constant.
"""


def check_interpreter(interpreter: Any) -> None:
    """Raise `ModelError` if a model has several subgraphs, or operations outside `ALLOWED_OPERATIONS`."""
    if interpreter.num_subgraphs() != 1:
        raise ModelError(f"it has {interpreter.num_subgraphs()} subgraphs, expected one")
    names = graphs.list_litert_operations(interpreter)
    check_operation_count(len(names))
    if foreign := sorted(set(names) - ALLOWED_OPERATIONS):
        raise ModelError(f"its graph has the operation {foreign[0]!r}, which Sightline does not run")
    for size in graphs.list_litert_sizes(interpreter, "RESIZE_BILINEAR"):
        if size is None or len(size) != 2 or not all(1 <= side <= MAX_SIDE for side in size):
            raise ModelError(
                f"its graph resizes to {'a size that it computes' if size is None else list(size)}, expected a "
                f"constant height and width of at most {MAX_SIDE}"
            )
