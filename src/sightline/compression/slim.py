"""Structured channel pruning: channels are physically removed, leaving a smaller network of stock layers.

Importance is the batch-norm scale of a channel (Liu et al., 2017, arXiv:1708.06519) or its filter norm (Li et al.,
2016, arXiv:1608.08710), or the first-order Taylor estimate of the change of the loss (Molchanov et al., 2019,
arXiv:1906.10771).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.compression import channels
from sightline.compression.channels import Channels, Part
from sightline.models.scopes import own_names

FEWEST = 2  # minimum number of channels of a layer
_WIDTH = {"Conv2D": "filters", "SeparableConv2D": "filters", "Dense": "units"}
_DROPS = {"Dropout", "SpatialDropout2D"}

Scores = NDArray[np.float64]
"""The importance of each group, float64 [G]; the smallest are pruned first."""


def slimmed(model: Any, found: Channels, removed: NDArray[np.bool_]) -> Any:
    """Return a new network without the groups `removed` (bool [G]), with the remaining weights of `model`.

    Outputs are equal (up to rounding) if the removed channels are zero wherever a layer reads them.
    """
    keras = backend.keras()
    left = ~removed[found.group]
    tensors: dict[int, Any] = {}
    layers: list[tuple[Part, Any]] = []
    with own_names():
        pixels = keras.Input(model.input.shape[1:], dtype=model.input.dtype, name=model.input.name)
        tensors[id(model.input)] = pixels
        for part in found.parts:
            operation = _copy(part, left)
            positional, named = part.node.arguments.fill_in(tensors)
            made = operation(*positional, **named)
            made = list(made) if isinstance(made, list | tuple) else [made]
            tensors |= {id(old): new for old, new in zip(part.node.outputs, made, strict=True)}
            layers.append((part, operation))
        outputs = {name: tensors[id(tensor)] for name, tensor in model.output.items()}
        new = keras.Model(pixels, outputs, name=model.name)
    for part, layer in layers:
        _fill(part, layer, left)
    return new


def _copy(part: Part, left: NDArray[np.bool_]) -> Any:
    config = part.layer.get_config()
    if part.kind in _WIDTH:
        config[_WIDTH[part.kind]] = int(left[part.outputs[0]].sum())
    elif part.kind in _DROPS:  # a narrower layer needs less dropout (arXiv:1506.02626)
        config["rate"] *= float(left[part.outputs[0]].mean())
    elif part.kind == "Reshape":
        config["target_shape"] = (*config["target_shape"][:-1], _reshaped(part, config["target_shape"][-1], left))
    return type(part.layer).from_config(config)


def _reshaped(part: Part, last: int, left: NDArray[np.bool_]) -> int:
    slots = part.outputs[0]
    return int(left[slots].sum()) if last == len(slots) else last


def _fill(part: Part, layer: Any, left: NDArray[np.bool_]) -> None:
    known = {weight.name: axes for weight, axes in part.weights()}
    for old, new in zip(getattr(part.layer, "weights", ()), getattr(layer, "weights", ()), strict=True):
        array = _array(old)
        for axis, slots in enumerate(known.get(old.name, ())):
            if slots is not None:
                array = np.compress(left[slots], array, axis)
        backend.assign(new, array)


def _array(variable: Any) -> NDArray[np.float32]:
    found: NDArray[np.float32] = backend.keras().ops.convert_to_numpy(variable)
    return found


# ---- what to remove ----------------------------------------------------------------------------------------------


def by_scale(found: Channels) -> Scores:
    """Score each group by its batch-norm scales, or else by its filter norms; normalized to a mean of 1 per layer."""
    totals, counts = np.zeros(found.count), np.zeros(found.count)
    normalized = np.zeros(found.count, bool)
    for part in found.parts:
        if part.kind == "BatchNormalization" and part.layer.scale:
            normalized[found.group[part.outputs[0]]] = True
    for part in found.parts:
        scales = part.kind == "BatchNormalization" and part.layer.scale
        kernel = next((w for w, axes in part.weights() if len(axes) > 1 and axes[-1] is not None), None)
        if not scales and kernel is None:
            continue
        slots = part.outputs[0]
        size = np.abs(_array(part.layer.gamma)) if scales else _norms(_array(kernel))
        counted = normalized[found.group[slots]] == scales
        size = np.where(counted, size / max(float(size.mean()), 1e-12), 0.0)
        totals += found.sums(slots, size)
        counts += found.sums(slots, counted.astype(float))
    return totals / np.maximum(counts, 1)


def _norms(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    norms: NDArray[np.float32] = np.sqrt((kernel.reshape(-1, kernel.shape[-1]) ** 2).sum(0))
    return norms


def by_taylor(model: Any, found: Channels, step: Callable[[Any], int]) -> Scores:
    """Score each group by the squared change of the loss that its removal would bring, to first order.

    `step` is called with a Keras optimizer that changes nothing, trains `model` for one batch with it at each call, and
    returns how many batches are left. The sum of weight times gradient over all that makes a channel is squared batch
    by batch, and averaged. The network's weights, running statistics included, stay as they are.
    """
    before = [_array(v).copy() for v in model.variables]
    recorder = _recorder()
    total, count, more = np.zeros(found.count), 0, 1
    while more > 0:
        more = step(recorder)
        total += _first_order(found, recorder) ** 2
        count += 1
    backend.assign_all(model.variables, before)
    return total / count


def _first_order(found: Channels, recorder: Any) -> Scores:
    change = np.zeros(found.count)
    for part in found.parts:
        for weight, axes in part.weights():
            gradient = recorder.gradient(weight)
            at = [axis for axis, slots in enumerate(axes) if slots is not None and slots is part.outputs[0]]
            if gradient is None or not at:
                continue
            product = _array(weight).astype(np.float64) * gradient
            others = tuple(axis for axis in range(product.ndim) if axis != at[-1])
            change += found.sums(part.outputs[0], product.sum(others))
    return change


def _recorder() -> Any:
    """Return a Keras optimizer that records the last gradients and changes no weight, on every backend."""
    keras = backend.keras()

    class Recorder(keras.optimizers.Optimizer):  # type: ignore[name-defined]  # Keras is imported late
        def build(self, variables: Any) -> None:
            super().build(variables)
            self._places = {id(v): number for number, v in enumerate(variables)}
            self._last = [self.add_variable_from_reference(v, name="gradient") for v in variables]

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:  # noqa: ARG002  # Keras names it
            self.assign(self._last[self._get_variable_index(variable)], gradient)

        def gradient(self, variable: Any) -> NDArray[np.float32] | None:
            place = self._places.get(id(variable))
            return None if place is None else _array(self._last[place])

    return Recorder(learning_rate=1.0)


def choose(found: Channels, scores: Scores, share: float, *, weigh: bool) -> NDArray[np.bool_]:
    """Choose the groups to remove so that at most the fraction `share` of the network remains: bool [G].

    The size is the mean of the fractions of weights and of multiply-adds. If `weigh`, a score is divided by the size
    that removing the group saves, so that expensive, unimportant groups go first. Every layer keeps at least `FEWEST`
    channels, so more than `share` may remain.
    """
    scores = scores / np.maximum(_savings(found), 1e-12) if weigh else scores
    producers = [found.group[part.outputs[0]] for part in found.producers()]
    order = np.argsort(np.where(found.kept, np.inf, scores), kind="stable")[: int((~found.kept).sum())]
    spare = [len(np.unique(groups)) - FEWEST for groups in producers]
    uses: dict[int, list[int]] = {}
    for number, groups in enumerate(producers):
        for group in np.unique(groups).tolist():
            uses.setdefault(group, []).append(number)
    goes = []
    for group in order.tolist():
        if all(spare[number] > 0 for number in uses.get(group, ())):
            goes.append(group)
            for number in uses.get(group, ()):
                spare[number] -= 1
    return _until(found, goes, share)


def _until(found: Channels, goes: list[int], share: float) -> NDArray[np.bool_]:
    """Remove the first groups of `goes` until at most `share` remains, by bisection."""
    nothing = np.zeros(found.count, bool)
    whole = channels.sized(found, nothing)

    def without(count: int) -> NDArray[np.bool_]:
        removed = nothing.copy()
        removed[goes[:count]] = True
        return removed

    low, high = 0, len(goes)
    while low < high:
        middle = (low + high) // 2
        left = channels.sized(found, without(middle))
        if sum(now / max(all_, 1) for now, all_ in zip(left, whole, strict=True)) / 2 <= share:
            high = middle
        else:
            low = middle + 1
    return without(low)


def _savings(found: Channels) -> Scores:
    """Return the fraction of the network that each group alone saves: the mean over weights and multiply-adds."""
    weights, products = np.zeros(found.count), np.zeros(found.count)
    for part in found.parts:
        for weight, axes in part.weights():
            for size, slots in zip(weight.shape, axes, strict=True):
                if slots is not None:
                    each = np.full(len(slots), np.prod(weight.shape) / size)
                    weights += found.sums(slots, each)
                    products += found.sums(slots, each * channels.places(part) * (len(axes) > 1))
    whole = channels.sized(found, np.zeros(found.count, bool))
    return (weights / max(whole[0], 1) + products / max(whole[1], 1)) / 2
