"""Where the frozen layers of a graph end."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol


class Call(Protocol):
    """A call of a layer in a graph: the layer's name, whether it has weights, and the tensors that it connects."""

    @property
    def name(self) -> str:
        """The name of the layer."""

    @property
    def has_state(self) -> bool:
        """Whether the layer has weights or draws random numbers."""

    @property
    def input_tensors(self) -> list[Any]:
        """The inputs of the call."""

    @property
    def outputs(self) -> list[Any]:
        """The outputs of the call."""


def find_boundary(calls: Sequence[Call], frozen: Collection[str]) -> Any | None:
    """Return the last tensor before the first trainable layer that feeds all later calls.

    `calls` are in the order of execution. Layers with weights that are not in `frozen` are trainable. Returns None if
    a trainable layer comes before the first such tensor.
    """
    last_use = {id(tensor): index for index, call in enumerate(calls) for tensor in call.input_tensors}
    live: dict[int, Any] = {}
    boundary = None
    for at, call in enumerate(calls):
        if call.name not in frozen and call.has_state:
            break
        live |= {id(t): t for t in call.outputs}
        live = {key: t for key, t in live.items() if last_use.get(key, -1) > at}
        if len(live) == 1:
            boundary = next(iter(live.values()))
    return boundary
