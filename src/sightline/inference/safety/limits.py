"""Limits on the memory and time that a graph needs, whatever its format.

A file of a few kilobytes can require terabytes (``Concat(x, x)`` forty times) or years (products of large matrices),
and runtimes evaluate constant expressions while they load it. So the size of every value, for a given batch size, is
computed before a runtime sees the graph.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sightline.errors import ModelError

LIMIT_VARIABLE = "SIGHTLINE_MODEL_LIMIT"
MAX_MEMORY = 384 << 20  # bytes of all live values; VGG16 needs 206 MB for 8 images of 224x224
MAX_COST = 2e11  # multiply-adds for one image, about 10 s on two cores; VGG16 needs 1.6e10 at 224x224
MAX_OPERATIONS = 10_000
_CALL_COST = 1e5  # overhead of an operation in multiply-adds: a few microseconds
_MAX_WEIGHT_GROWTH = 4  # factor by which weights may grow when converted to float32


@dataclass(frozen=True, slots=True)
class Step:
    """An operation: its display name, the values that it reads, and the bytes of the values that it computes.

    `cost` is in multiply-adds, `workspace` in bytes of temporary memory.
    """

    name: str
    inputs: tuple[str, ...]
    output_bytes: Mapping[str, int]
    cost: float
    workspace: int = 0


def read_scale() -> float:
    """Return the factor for all limits from the environment variable ``SIGHTLINE_MODEL_LIMIT``, for trusted models."""
    text = os.environ.get(LIMIT_VARIABLE, "1")
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not 0 < scale < math.inf:
        raise ModelError(f"{LIMIT_VARIABLE} is {text!r}; expected a factor for the limits, such as 4")
    return scale


def check_operation_count(count: int) -> None:
    """Raise `ModelError` if a graph has more than `MAX_OPERATIONS` operations."""
    if count > MAX_OPERATIONS * read_scale():
        raise ModelError(f"it has {count} operations, more than {MAX_OPERATIONS * read_scale():g}")


def check_steps(
    steps: Iterable[Step],
    input_bytes: Mapping[str, int],
    weight_bytes: Mapping[str, int],
    last_use: Mapping[str, int],
    batch: int,
) -> None:
    """Raise `ModelError` if all live values, or the values computed from weights alone, take too much memory.

    For a batch of one image, also if the steps take too long. `steps` are in execution order, and consumed only as long
    as they are within the limits; `last_use` maps each value to the number of the last step that reads it.
    """
    scale = read_scale()
    constants, constant_bytes = set(weight_bytes), 0
    max_constant_bytes = MAX_MEMORY * scale + _MAX_WEIGHT_GROWTH * sum(weight_bytes.values())
    live_bytes, total_bytes, cost = dict(input_bytes), sum(input_bytes.values()), 0.0
    names_by_last_use: dict[int, list[str]] = {}
    for name in input_bytes:
        names_by_last_use.setdefault(max(last_use.get(name, 0), 0), []).append(name)
    for at, step in enumerate(steps):
        cost += step.cost + _CALL_COST
        size = sum(step.output_bytes.values())
        if constants.issuperset(step.inputs):
            constants.update(step.output_bytes)
            constant_bytes += size
        else:
            for name, output_bytes in step.output_bytes.items():
                total_bytes += output_bytes - live_bytes.get(name, 0)
                live_bytes[name] = output_bytes
                names_by_last_use.setdefault(max(last_use.get(name, at), at), []).append(name)
        if total_bytes + step.workspace > MAX_MEMORY * scale or constant_bytes > max_constant_bytes:
            raise ModelError(
                f"its operation {step.name!r} gives {size >> 20} MB for {batch} images, so more than "
                f"{MAX_MEMORY * scale / 2**20:.0f} MB are in use at once; for a model that you trust, "
                f"raise the limit with {LIMIT_VARIABLE}=4"
            )
        for name in names_by_last_use.pop(at, ()):
            total_bytes -= live_bytes.pop(name, 0)
    if batch == 1 and cost > MAX_COST * scale:
        raise ModelError(
            f"it takes {cost:.2g} multiply-adds for one image, more than {MAX_COST * scale:.2g}; for a model that you "
            f"trust, raise the limit with {LIMIT_VARIABLE}=4"
        )
