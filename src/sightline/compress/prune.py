"""Structured channel pruning: channels are physically removed, leaving a smaller network of stock layers.

The importance of a channel is its batch-norm scale (Liu et al., 2017, arXiv:1708.06519), its filter norm (Li et al.,
2016, arXiv:1608.08710), or a first-order Taylor estimate of the change in the loss (Molchanov et al., 2019,
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
from sightline.models.layers import is_kernel

MIN_CHANNELS = 2  # minimum number of channels per layer

Scores = NDArray[np.float64]
"""The importance of each group, float64 [G]; the least important groups are pruned first."""


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
            outputs = operation(*positional, **named)
            output_list = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
            tensors |= {id(old): new for old, new in zip(call.node.outputs, output_list, strict=True)}
            layers.append((call, operation))
        outputs_by_name = {name: tensors[id(tensor)] for name, tensor in model.output.items()}
        pruned = keras.Model(pixels, outputs_by_name, name=model.name)
    for call, layer in layers:
        _copy_weights(call, layer, kept_slots)
    training_steps.seed_dropout(pruned)
    return pruned


def _copy_layer(call: LayerCall, kept_slots: NDArray[np.bool_]) -> Any:
    config, slots = call.layer.get_config(), call.outputs[0]
    call.layer_type.set_channels(config, int(kept_slots[slots].sum()), len(slots))
    return type(call.layer).from_config(config)


def _copy_weights(call: LayerCall, layer: Any, kept_slots: NDArray[np.bool_]) -> None:
    axes_by_name = {weight.name: axes for weight, axes in call.weights()}
    for old, new in zip(getattr(call.layer, "weights", ()), getattr(layer, "weights", ()), strict=True):
        array = _to_numpy(old)
        for axis, slots in enumerate(axes_by_name.get(old.name, ())):
            if slots is not None:
                array = np.compress(kept_slots[slots], array, axis)
        backend.assign(new, array)


def _to_numpy(variable: Any) -> NDArray[np.float32]:
    array: NDArray[np.float32] = backend.keras().ops.convert_to_numpy(variable)
    return array


def score_by_scale(groups: ChannelGroups) -> Scores:
    """Score each group by its batch-norm scales, or else by its filter norms, divided by their mean over the layer."""
    totals, counts = np.zeros(groups.count), np.zeros(groups.count)
    normalized = np.zeros(groups.count, bool)
    scales = [_read_scales(call) for call in groups.calls]
    for call, own_scales in zip(groups.calls, scales, strict=True):
        if own_scales is not None:
            normalized[groups.group[call.outputs[0]]] = True
    for call, own_scales in zip(groups.calls, scales, strict=True):
        scores = _filter_norms(call) if own_scales is None else own_scales
        if scores is None:
            continue
        slots = call.outputs[0]
        is_used = normalized[groups.group[slots]] == (own_scales is not None)
        scores = np.where(is_used, scores / max(float(scores.mean()), 1e-12), 0.0)
        totals += groups.sum_by_group(slots, scores)
        counts += groups.sum_by_group(slots, is_used.astype(float))
    return totals / np.maximum(counts, 1)


def _read_scales(call: LayerCall) -> NDArray[np.float32] | None:
    """Return the absolute scale of each channel that a layer normalizes: float32 [C]; None if it has no scales."""
    for weight, axes in call.weights():
        if weight.name == "gamma" and len(axes) == 1 and axes[0] is call.outputs[0]:
            scales: NDArray[np.float32] = np.abs(_to_numpy(weight))
            return scales
    return None


def _filter_norms(call: LayerCall) -> NDArray[np.float32] | None:
    """Return the kernel norm of each channel that a layer creates: float32 [C]; None if it creates none."""
    for weight, axes in call.weights():
        at = [axis for axis, slots in enumerate(axes) if slots is call.outputs[0]]
        if is_kernel(weight) and at and call.flow == "make":
            filters = np.moveaxis(_to_numpy(weight), at[0], -1).reshape(-1, len(call.outputs[0]))
            norms: NDArray[np.float32] = np.sqrt((filters**2).sum(0))
            return norms
    return None


def score_by_taylor(model: Any, groups: ChannelGroups, step: Callable[[Any], int]) -> Scores:
    """Score each group by the squared change in the loss that its removal would cause, to first order.

    Each call of `step` runs a training step of `model` on a batch with the given Keras optimizer, which records
    gradients and changes no weights, and returns the number of remaining batches. The sum of weight times gradient over
    the weights of a channel is squared for each batch and averaged over the batches. The variables of the network,
    including batch-norm statistics, are restored.
    """
    initial_values = [_to_numpy(v).copy() for v in model.variables]
    recorder = _make_recorder()
    total, count, remaining = np.zeros(groups.count), 0, 1
    while remaining > 0:
        remaining = step(recorder)
        total += _first_order_change(groups, recorder) ** 2
        count += 1
    backend.assign_all(model.variables, initial_values)
    return total / count


def _first_order_change(groups: ChannelGroups, recorder: Any) -> Scores:
    change = np.zeros(groups.count)
    for call in groups.calls:
        for weight, axes in call.weights():
            gradient = recorder.gradient(weight)
            output_axes = [axis for axis, slots in enumerate(axes) if slots is not None and slots is call.outputs[0]]
            if gradient is None or not output_axes:
                continue
            product = _to_numpy(weight).astype(np.float64) * gradient
            other_axes = tuple(axis for axis in range(product.ndim) if axis != output_axes[-1])
            change += groups.sum_by_group(call.outputs[0], product.sum(other_axes))
    return change


def _make_recorder() -> Any:
    """Return a Keras optimizer that records the last gradients and changes no weights, on every backend."""
    keras = backend.keras()

    class Recorder(keras.optimizers.Optimizer):  # type: ignore[name-defined]  # Keras is imported lazily
        def build(self, variables: Any) -> None:
            super().build(variables)
            self._positions = {self._key(v): position for position, v in enumerate(variables)}
            self._gradients = [self.add_variable_from_reference(v, name="gradient") for v in variables]

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:  # noqa: ARG002  # Keras' signature
            self.assign(self._gradients[self._positions[self._key(variable)]], gradient)

        def gradient(self, variable: Any) -> NDArray[np.float32] | None:
            position = self._positions.get(self._key(variable))
            return None if position is None else _to_numpy(self._gradients[position])

        @staticmethod
        def _key(variable: Any) -> int:
            """Return the identity of a variable; Keras passes TensorFlow's own to `update_step`."""
            is_wrapped = backend.name() == "tensorflow" and isinstance(variable, keras.Variable)
            return id(variable.value if is_wrapped else variable)

    return Recorder(learning_rate=1.0)


def choose_groups(groups: ChannelGroups, scores: Scores, fraction: float, *, weigh: bool) -> NDArray[np.bool_]:
    """Choose the groups to remove so that at most `fraction` of the network remains: bool [G].

    The remaining fraction is the mean of the fractions of weights and of multiply-adds. If `weigh`, the score of a
    group is divided by the fraction that its removal saves, so that expensive, unimportant groups go first. Every layer
    keeps at least `MIN_CHANNELS` channels, so more than `fraction` may remain.
    """
    scores = scores / np.maximum(_group_savings(groups), 1e-12) if weigh else scores
    layers = [np.unique(groups.group[call.outputs[0]]).tolist() for call in groups.producers()]
    order = np.argsort(np.where(groups.protected, np.inf, scores), kind="stable")[: int((~groups.protected).sum())]
    spare = [len(of_layer) - MIN_CHANNELS for of_layer in layers]
    uses: dict[int, list[int]] = {}
    for number, of_layer in enumerate(layers):
        for group in of_layer:
            uses.setdefault(group, []).append(number)
    removable = []
    for group in order.tolist():
        if all(spare[number] > 0 for number in uses.get(group, ())):
            removable.append(group)
            for number in uses.get(group, ()):
                spare[number] -= 1
    return _remove_until(groups, removable, fraction)


def _remove_until(groups: ChannelGroups, removable: list[int], fraction: float) -> NDArray[np.bool_]:
    """Remove the first groups of `removable` until at most `fraction` remains, by bisection."""
    total = channel_groups.count_remaining(groups, np.zeros(groups.count, bool))

    def remove_first(count: int) -> NDArray[np.bool_]:
        removed = np.zeros(groups.count, bool)
        removed[removable[:count]] = True
        return removed

    low, high = 0, len(removable)
    while low < high:
        middle = (low + high) // 2
        remaining = channel_groups.count_remaining(groups, remove_first(middle))
        if sum(count / max(whole, 1) for count, whole in zip(remaining, total, strict=True)) / 2 <= fraction:
            high = middle
        else:
            low = middle + 1
    return remove_first(low)


def _group_savings(groups: ChannelGroups) -> Scores:
    """Return the fraction saved by removing each group alone: the mean for weights and multiply-adds."""
    weights, products = np.zeros(groups.count), np.zeros(groups.count)
    for call in groups.calls:
        for weight, axes in call.weights():
            for size, slots in zip(weight.shape, axes, strict=True):
                if slots is not None:
                    per_slot = np.full(len(slots), np.prod(weight.shape) / size)
                    weights += groups.sum_by_group(slots, per_slot)
                    if is_kernel(weight):
                        products += groups.sum_by_group(slots, per_slot * channel_groups.count_positions(call))
    total_weights, total_products = channel_groups.count_remaining(groups, np.zeros(groups.count, bool))
    return (weights / max(total_weights, 1) + products / max(total_products, 1)) / 2
