"""Disable TF32 on GPUs, which rounds the inputs of float32 products to 10 bits of mantissa.

The settings apply to the whole process; see `backend.full_precision`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def disable_in_tensorflow(tensorflow: Any) -> Callable[[], None]:
    """Disable TF32 in the module `tensorflow`; return a function that restores it."""
    experimental = tensorflow.config.experimental
    was_enabled = experimental.tensor_float_32_execution_enabled()
    experimental.enable_tensor_float_32_execution(enabled=False)
    return lambda: experimental.enable_tensor_float_32_execution(was_enabled)


def disable_in_torch() -> Callable[[], None]:
    """Disable TF32 and bfloat16 products in PyTorch; return a function that restores them.

    Since 2.9 PyTorch has two sets of switches, and reading the older set raises an error once the newer set was used.
    """
    import torch

    backends: Any = torch.backends
    try:
        matmul, convolutions = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    except RuntimeError:
        switches = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
        precisions = [switch.fp32_precision for switch in switches]
        for switch in switches:
            switch.fp32_precision = "ieee"

        def restore() -> None:
            for switch, precision in zip(switches, precisions, strict=True):
                switch.fp32_precision = precision

        return restore

    def switch_to(precision: str, allowed: bool) -> None:  # noqa: FBT001  # as in PyTorch
        torch.set_float32_matmul_precision(precision)
        backends.cudnn.allow_tf32 = allowed

    switch_to("highest", allowed=False)
    return lambda: switch_to(matmul, convolutions)
