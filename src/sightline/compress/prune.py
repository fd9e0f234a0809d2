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
from sightline._keras import graphs, training_steps
from sightline._keras.process_state import seed_new_layers
from sightline.compress import channel_groups
from sightline.compress.channel_groups import ChannelGroups, LayerCall

MIN_CHANNELS = 2  # minimum number of channels of a layer
_WIDTH = {"Conv2D": "filters", "SeparableConv2D": "filters", "Dense": "units"}
_DROPOUT_LAYERS = {"Dropout", "SpatialDropout2D"}

Scores = NDArray[np.float64]
"""The importance of each group, float64 [G]; the smallest are pruned first."""


def prune(model: Any, groups: ChannelGroups, removed: NDArray[np.bool_]) -> Any:
    """Return a new network without the groups `removed` (bool [G]), with the remaining weights of `model`.

    Outputs are equal (up to rounding) if the removed channels are zero wherever a layer reads them.
    """
    keras = backend.keras()
    kept_slots = ~removed[groups.group]
    tensors: dict[int, Any] = {}
    layers: list[tuple[LayerCall, Any]] = []
    with graphs.fresh_layer_names(), seed_new_layers(0):  # reproducible dropout
        pixels = keras.Input(model.input.shape[1:], dtype=model.input.dtype, name=model.input.name)
        tensors[id(model.input)] = pixels
        for call in groups.calls:
            operation = _copy_layer(call, kept_slots)
            positional, named = graphs.bind_arguments(call.node, tensors)
            outputs_of_layer = operation(*positional, **named)
            outputs_of_layer = (
                list(outputs_of_layer) if isinstance(outputs_of_layer, list | tuple) else [outputs_of_layer]
            )
            tensors |= {id(old): new for old, new in zip(call.node.outputs, outputs_of_layer, strict=True)}
            layers.append((call, operation))
        outputs = {name: tensors[id(tensor)] for name, tensor in model.output.items()}
        new = keras.Model(pixels, outputs, name=model.name)
    for call, layer in layers:
        _copy_weights(call, layer, kept_slots)
    training_steps.seed_dropout(new)
    return new


def _copy_layer(call: LayerCall, kept_slots: NDArray[np.bool_]) -> Any:
    config = call.layer.get_config()
    if call.class_name in _WIDTH:
        config[_WIDTH[call.class_name]] = int(kept_slots[call.outputs[0]].sum())
    elif call.class_name in _DROPOUT_LAYERS:  # a narrower layer needs less dropout (arXiv:1506.02626)
        config["rate"] *= float(kept_slots[call.outputs[0]].mean())
    elif call.class_name == "Reshape":
        config["target_shape"] = (
            *config["target_shape"][:-1],
            _last_dimension(call, config["target_shape"][-1], kept_slots),
        )
    return type(call.layer).from_config(config)


def _last_dimension(call: LayerCall, last: int, kept_slots: NDArray[np.bool_]) -> int:
    slots = call.outputs[0]
    return int(kept_slots[slots].sum()) if last == len(slots) else last


def _copy_weights(call: LayerCall, layer: Any, kept_slots: NDArray[np.bool_]) -> None:
    known = {weight.name: axes for weight, axes in call.weights()}
    for old, new in zip(getattr(call.layer, "weights", ()), getattr(layer, "weights", ()), strict=True):
        array = _to_numpy(old)
        for axis, slots in enumerate(known.get(old.name, ())):
            if slots is not None:
                array = np.compress(kept_slots[slots], array, axis)
        backend.assign(new, array)


def _to_numpy(variable: Any) -> NDArray[np.float32]:
    array: NDArray[np.float32] = backend.keras().ops.convert_to_numpy(variable)
    return array


# ---- what to remove ----------------------------------------------------------------------------------------------


def score_by_scale(groups: ChannelGroups) -> Scores:
    """Score each group by its batch-norm scales, or else by its filter norms; normalized to a mean of 1 per layer."""
    totals, counts = np.zeros(groups.count), np.zeros(groups.count)
    normalized = np.zeros(groups.count, bool)
    for call in groups.calls:
        if call.class_name == "BatchNormalization" and call.layer.scale:
            normalized[groups.group[call.outputs[0]]] = True
    for call in groups.calls:
        scales = call.class_name == "BatchNormalization" and call.layer.scale
        kernel = next((w for w, axes in call.weights() if len(axes) > 1 and axes[-1] is not None), None)
        if not scales and kernel is None:
            continue
        slots = call.outputs[0]
        size = np.abs(_to_numpy(call.layer.gamma)) if scales else _filter_norms(_to_numpy(kernel))
        counted = normalized[groups.group[slots]] == scales
        size = np.where(counted, size / max(float(size.mean()), 1e-12), 0.0)
        totals += groups.sum_by_group(slots, size)
        counts += groups.sum_by_group(slots, counted.astype(float))
    return totals / np.maximum(counts, 1)


def _filter_norms(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    norms: NDArray[np.float32] = np.sqrt((kernel.reshape(-1, kernel.shape[-1]) ** 2).sum(0))
    return norms


def score_by_taylor(model: Any, groups: ChannelGroups, step: Callable[[Any], int]) -> Scores:
    """Score each group by the squared change of the loss that its removal would bring, to first order.

    `step` is called with a Keras optimizer that changes nothing, trains `model` for one batch with it at each call, and
    returns how many batches are left. The sum of weight times gradient over all that makes a channel is squared batch
    by batch, and averaged. The network's weights, running statistics included, stay as they are.
    """
    before = [_to_numpy(v).copy() for v in model.variables]
    recorder = _make_recorder()
    total, count, more = np.zeros(groups.count), 0, 1
    while more > 0:
        more = step(recorder)
        total += _first_order_change(groups, recorder) ** 2
        count += 1
    backend.assign_all(model.variables, before)
    return total / count


def _first_order_change(groups: ChannelGroups, recorder: Any) -> Scores:
    change = np.zeros(groups.count)
    for call in groups.calls:
        for weight, axes in call.weights():
            gradient = recorder.gradient(weight)
            at = [axis for axis, slots in enumerate(axes) if slots is not None and slots is call.outputs[0]]
            if gradient is None or not at:
                continue
            product = _to_numpy(weight).astype(np.float64) * gradient
            others = tuple(axis for axis in range(product.ndim) if axis != at[-1])
            change += groups.sum_by_group(call.outputs[0], product.sum(others))
    return change


def _make_recorder() -> Any:
    """Return a Keras optimizer that records the last gradients and changes no weight, on every backend."""
    keras = backend.keras()

    class Recorder(keras.optimizers.Optimizer):  # type: ignore[name-defined]  # Keras is imported late
        def build(self, variables: Any) -> None:
            super().build(variables)
            self._places = {self._key(v): number for number, v in enumerate(variables)}
            self._last = [self.add_variable_from_reference(v, name="gradient") for v in variables]

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:  # noqa: ARG002  # Keras names it
            self.assign(self._last[self._places[self._key(variable)]], gradient)

        def gradient(self, variable: Any) -> NDArray[np.float32] | None:
            place = self._places.get(self._key(variable))
            return None if place is None else _to_numpy(self._last[place])

        @staticmethod
        def _key(variable: Any) -> int:
            """Identify a variable, of which TensorFlow hands its own one to `update_step`."""
            is_wrapped = backend.name() == "tensorflow" and isinstance(variable, keras.Variable)
            return id(variable.value if is_wrapped else variable)

    return Recorder(learning_rate=1.0)


def choose_groups(channel_groups: ChannelGroups, scores: Scores, fraction: float, *, weigh: bool) -> NDArray[np.bool_]:
    """Choose the groups to remove so that at most the fraction `fraction` of the network remains: bool [G].

    The size is the mean of the fractions of weights and of multiply-adds. If `weigh`, a score is divided by the size
    that removing the group saves, so that expensive, unimportant groups go first. Every layer keeps at least
    `MIN_CHANNELS` channels, so more than `fraction` may remain.
    """
    scores = scores / np.maximum(_group_savings(channel_groups), 1e-12) if weigh else scores
    producers = [channel_groups.group[call.outputs[0]] for call in channel_groups.producers()]
    order = np.argsort(np.where(channel_groups.protected, np.inf, scores), kind="stable")[
        : int((~channel_groups.protected).sum())
    ]
    spare = [len(np.unique(groups)) - MIN_CHANNELS for groups in producers]
    uses: dict[int, list[int]] = {}
    for number, groups in enumerate(producers):
        for group in np.unique(groups).tolist():
            uses.setdefault(group, []).append(number)
    removable = []
    for group in order.tolist():
        if all(spare[number] > 0 for number in uses.get(group, ())):
            removable.append(group)
            for number in uses.get(group, ()):
                spare[number] -= 1
    return _remove_until(channel_groups, removable, fraction)


def _remove_until(groups: ChannelGroups, removable: list[int], fraction: float) -> NDArray[np.bool_]:
    """Remove the first groups of `removable` until at most `fraction` remains, by bisection."""
    nothing = np.zeros(groups.count, bool)
    whole = channel_groups.count_remaining(groups, nothing)

    def without(count: int) -> NDArray[np.bool_]:
        removed = nothing.copy()
        removed[removable[:count]] = True
        return removed

    low, high = 0, len(removable)
    while low < high:
        middle = (low + high) // 2
        remaining = channel_groups.count_remaining(groups, without(middle))
        if sum(now / max(all_, 1) for now, all_ in zip(remaining, whole, strict=True)) / 2 <= fraction:
            high = middle
        else:
            low = middle + 1
    return without(low)


def _group_savings(groups: ChannelGroups) -> Scores:
    """Return the fraction of the network that each group alone saves: the mean over weights and multiply-adds."""
    weights, products = np.zeros(groups.count), np.zeros(groups.count)
    for call in groups.calls:
        for weight, axes in call.weights():
            for size, slots in zip(weight.shape, axes, strict=True):
                if slots is not None:
                    each = np.full(len(slots), np.prod(weight.shape) / size)
                    weights += groups.sum_by_group(slots, each)
                    products += groups.sum_by_group(
                        slots, each * channel_groups.count_positions(call) * (len(axes) > 1)
                    )
    whole = channel_groups.count_remaining(groups, np.zeros(groups.count, bool))
    return (weights / max(whole[0], 1) + products / max(whole[1], 1)) / 2
