"""Emulate on a CPU what GPUs do to float32 by default: round the factors of products to a 10-bit mantissa (TF32).

This follows the backends' own switches, which are read when a layer is traced, as in XLA: a function compiled in
reduced precision keeps it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sightline import backend

BITS = 10  # mantissa of TF32; float32 has 23


def is_tf32_enabled() -> bool:
    """Return whether the backend would compute float32 products in TF32 on a GPU."""
    if backend.name() == "jax":
        import jax

        return bool(jax.config.jax_default_matmul_precision != "highest")
    if backend.name() == "torch":
        import torch

        return bool(torch.backends.cudnn.allow_tf32)
    return bool(backend.tensorflow().config.experimental.tensor_float_32_execution_enabled())


def round_to_tf32(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return float32 `values` rounded to a mantissa of `BITS` bits."""
    drop = 23 - BITS
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64) + (1 << (drop - 1))
    return (bits & (0xFFFFFFFF << drop)).astype(np.uint32).view(np.float32)


def _round_tensor(tensor: Any) -> Any:
    """Round like `round_to_tf32`, but in a graph and with a gradient, by Dekker's splitting (1971)."""
    ops = backend.keras().ops
    large = ops.stop_gradient(tensor * float(2 ** (23 - BITS) + 1))
    return tensor + ops.stop_gradient(large - (large - tensor) - tensor)


def emulate_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make convolutions and dense layers compute as on a GPU, and the backend report one."""
    from keras.src.layers.convolutional.base_conv import BaseConv

    ops = backend.keras().ops
    monkeypatch.setattr(backend, "has_accelerator", lambda: True)
    convolve, multiply = BaseConv.convolution_op, ops.matmul

    def convolution_op(self: Any, inputs: Any, kernel: Any) -> Any:
        if is_tf32_enabled():
            inputs, kernel = _round_tensor(inputs), _round_tensor(ops.convert_to_tensor(kernel))
        return convolve(self, inputs, kernel)

    def matmul(a: Any, b: Any) -> Any:
        return (
            multiply(*(_round_tensor(ops.convert_to_tensor(x)) for x in (a, b)))
            if is_tf32_enabled()
            else multiply(a, b)
        )

    monkeypatch.setattr(BaseConv, "convolution_op", convolution_op)
    monkeypatch.setattr("keras.src.layers.core.dense.ops.matmul", matmul)
