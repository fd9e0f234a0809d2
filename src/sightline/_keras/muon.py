"""Muon for networks with convolutions; Keras' own Muon leaves their kernels to AdamW."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

SGD_MOMENTUM = 0.85  # for biases and the last layer, as in the CIFAR-10 speed record
_NORMALIZED, _MATRIX, _FIXED, _HEAD, _OTHER = "normalized", "matrix", "fixed", "head", "other"  # kinds of weights


def make_muon(  # noqa: C901  # the methods of its class count
    last_layer: str, whitening_layer: str, sgd_ratios: Mapping[str, float], **options: Any
) -> Any:
    """Return a Keras optimizer: Muon for kernels of convolutions and hidden dense layers, AdamW or SGD for the rest.

    A kernel [h, w, in, out] is treated as a matrix [h w in, out]. A convolution without bias is followed by a
    normalization, so the scale of its kernel has no effect: its norm is kept at sqrt(out), and the learning rate is the
    relative size of an update (Jordan, 2024, https://kellerjordan.github.io/posts/muon). Other kernels use `options`,
    the options of Keras' Muon.

    Muon does not update `last_layer` ("head"), nor depthwise kernels, biases, and scales and offsets of normalizations
    ("other"). `sgd_ratios` maps one or both of these words to the learning rate of SGD with Nesterov momentum, as a
    multiple of Muon's; the rest uses AdamW. The kernel of `whitening_layer` does not change.
    """
    import keras

    ops = keras.ops

    class Muon(keras.optimizers.Muon):  # type: ignore[misc]  # Keras has no types
        """See `make_muon`."""

        def build(self, var_list: list[Any]) -> None:
            paths = {variable.path for variable in var_list}
            kinds = [_choose_kind(variable, paths, last_layer, whitening_layer) for variable in var_list]
            # by key: on TensorFlow, updates receive variables without a path
            self._kinds: dict[Any, str] = dict(zip(map(self._var_key, var_list), kinds, strict=True))
            super().build(var_list)

        def _get_kind(self, variable: Any) -> str:
            return self._kinds[self._var_key(variable)]

        def _should_use_adamw(self, variable: Any) -> bool:
            return self._get_kind(variable) in {_HEAD, _OTHER}

        def _use_weight_decay(self, variable: Any) -> bool:
            return self._get_kind(variable) != _FIXED and bool(super()._use_weight_decay(variable))

        def _muon_update_step(self, gradient: Any, variable: Any, lr: Any, m: Any) -> None:
            kind = self._get_kind(variable)
            if kind == _FIXED:
                return
            direction = self._add_momentum(gradient, m, self.momentum, nesterov=self.nesterov)
            matrix = ops.reshape(direction, (-1, variable.shape[-1]))
            update = lr * self.zeropower_via_newtonschulz5(matrix, self.ns_steps)
            if kind == _NORMALIZED:
                norm = ops.sqrt(ops.sum(ops.square(variable)) + 1e-12)
                weight = variable * (math.sqrt(variable.shape[-1]) / norm)
            else:
                weight, update = variable, self.lr_adjust(update)
            self.assign(variable, weight - ops.reshape(update, variable.shape))

        def _adamw_update_step(self, gradient: Any, variable: Any, learning_rate: Any, m: Any, v: Any) -> None:
            ratio = sgd_ratios.get(self._get_kind(variable))
            if ratio is None:
                super()._adamw_update_step(gradient, variable, learning_rate, m, v)
                return
            direction = self._add_momentum(gradient, m, SGD_MOMENTUM, nesterov=True)
            self.assign_sub(variable, learning_rate * ratio * direction)

        def _add_momentum(self, gradient: Any, m: Any, momentum: float, *, nesterov: bool) -> Any:
            total = momentum * m + gradient
            self.assign(m, total)
            return gradient + momentum * total if nesterov else total

    return Muon(**options)


def _choose_kind(variable: Any, paths: Collection[str], last_layer: str, whitening_layer: str) -> str:
    """Return the kind of a Keras `variable`; `paths` are the paths of all variables."""
    path, _, name = variable.path.rpartition("/")
    layer, dimensions = path.rpartition("/")[2], len(variable.shape)
    if layer == last_layer:
        return _HEAD
    if (layer, name) == (whitening_layer, "kernel"):
        return _FIXED
    if dimensions == 2:
        return _MATRIX
    if dimensions != 4 or name != "kernel" or variable.shape[-1] == 1:  # including depthwise kernels
        return _OTHER
    return _MATRIX if f"{path}/bias" in paths else _NORMALIZED
