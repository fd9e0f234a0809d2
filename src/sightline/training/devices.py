"""Data-parallel training: one batch over several devices, by Keras' own distribution.

JAX: `keras.distribution.DataParallel`. A step is compiled for the whole batch, of which each device holds a part; means
over the batch, those of batch normalisation too, are over the whole. TensorFlow: `tf.distribute.MirroredStrategy`. A
step is compiled for one device's part, so batch normalisation is told to ask the others. PyTorch: Keras has none.

What is spread is known to Keras alone (`Spread.scope`); without it, every function here is the plain one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend, hosts
from sightline.config import DeviceConfig
from sightline.errors import UsageError, plural

Step = Callable[[Any, NDArray[np.float32], NDArray[np.float32]], Mapping[str, Any]]
"""(inputs, label shares [n, K], weights [n]) of what this host loads of a batch, to the whole batch's mean figures."""


@dataclass(frozen=True, slots=True)
class Spread:
    """What a network is built and trained under; `made` is the backend's own, None for one device."""

    made: Any = None

    def scope(self) -> AbstractContextManager[Any]:
        """Within it, networks are built and trained on all the devices."""
        return nullcontext() if self.made is None else self.made.scope()


def settled(device: DeviceConfig, processes: int = 1) -> DeviceConfig:
    """Return `device` with the number of devices of each host decided, and how many hosts there are.

    Raises `UsageError` if there are not so many, or if the backend cannot spread a step.
    """
    _check_gpus(device)
    found = replace(device, count=device.count or len(_here()), hosts=processes)
    _check(found)
    return found


def _check_gpus(device: DeviceConfig) -> None:
    """Raise `UsageError` if the settings name GPUs that the backend does not see: it would train on the CPU."""
    here = [name for name in _here() if not name.startswith(("cpu", "tpu"))]
    if device.gpus and len(here) < len(device.gpus):
        seen = f"only {len(here)} of them" if here else "no GPU"
        raise UsageError(
            f"device.gpus is {list(device.gpus)}, but {backend.name()} sees {seen} here: leave it unset to train on "
            f"{_here()[0]}, or check the GPU's driver and that {backend.name()} is installed in its build for GPUs."
        )


def _check(device: DeviceConfig) -> None:
    here, count = _here(), device.count
    if count > len(here):
        raise UsageError(
            f"device.count is {count}, but there is only {', '.join(here)} here: use --devices {len(here)}, or all. "
            "(A run is resumed on as many as it was begun on; device.count in its config.toml says how many.)"
        )
    if count * device.hosts > 1 and backend.name() == "torch":
        raise UsageError(
            "PyTorch cannot train on several devices here, since Keras has no distribution for it: use "
            "--devices 1, or another backend (device.backend=jax or tensorflow)."
        )
    if device.hosts > 1 and not _alike(count):
        raise UsageError(
            f"Not every host has {plural(count, 'device')}: use --devices with the smallest number that one has."
        )


def spread(device: DeviceConfig) -> Spread:
    """Return what spreads networks over the devices that settings (`settled`) name; raises as `settled` does."""
    _check_gpus(device)
    if device.count * device.hosts == 1:
        return Spread()
    _check(device)
    if backend.name() == "jax":
        keras = backend.keras()
        names = [f"{d.platform}:{d.id}" for d in _of_each_host(device.count)]
        return Spread(keras.distribution.DataParallel(devices=names, auto_shard_dataset=False))
    tf = backend.tensorflow()
    return Spread(tf.distribute.MirroredStrategy(_here()[: device.count]))


def replicas() -> int:
    """Return how many devices, on all hosts together, share a step in the present scope."""
    distribution = _distribution()
    if distribution is not None:
        return int(distribution.num_model_replicas)
    strategy = _strategy()
    return 1 if strategy is None else int(strategy.num_replicas_in_sync)


def scaled(config: DeviceConfig, size: int, rate: float) -> tuple[int, float]:
    """Return the batch size over all devices, and the learning rate that goes with it.

    By ``device.scaling``. ``linear`` is the rule of Goyal et al., 2017, arXiv:1706.02677. Raises `UsageError` for a
    size that cannot be divided evenly.
    """
    count = replicas()
    if config.scaling != "none":
        return size * count, rate * (count if config.scaling == "linear" else count**0.5)
    if size % count:
        raise UsageError(
            f"A batch of {size} cannot be divided evenly among {plural(count, 'device')}: set train.batch_size (and "
            f"that of each stage) to a multiple of {count}, such as {-(-size // count) * count}."
        )
    return size, rate


def at_most(size: int, count: int) -> int:
    """Return the batch size for `count` images: `size`, or as few above `count` as the devices divide evenly.

    Images beyond `count` would only fill up the batch, at weight 0, and cost as much as others.
    """
    each = replicas()
    return min(size, -(-max(count, 1) // each) * each)


def share(size: int) -> slice:
    """Return the rows of each batch of `size` that this host loads."""
    if not hosts.joined() or _distribution() is None:
        return slice(0, size)
    import jax

    rows = size // jax.process_count()
    return slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)


def parts() -> int:
    """Return into how many parts a batch falls that do not see each other's pictures within the network."""
    strategy = _strategy()
    return 1 if strategy is None else int(strategy.num_replicas_in_sync)


def stepper(model: Any) -> Step:
    """Return a function that takes one training step of a compiled Keras `model` over all devices of the scope."""
    if _distribution() is not None:
        return _jax_step(model)
    if _strategy() is not None:
        return _tensorflow_step(model)

    def step(inputs: Any, shares: NDArray[np.float32], weights: NDArray[np.float32]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = model.train_on_batch(inputs, shares, sample_weight=weights, return_dict=True)
        return found

    return step


def predict_on_batch(model: Any, inputs: Any) -> Any:
    """Return what `model` says of a batch, which every host hands in whole, computed on all devices of the scope."""
    count = replicas()
    if count == 1:
        return model.predict_on_batch(inputs)
    size = len(_leaves(inputs)[0])
    missing = -size % count
    if missing:
        inputs = _mapped(lambda rows: np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]), inputs)
    found = _jax_predict(model, inputs) if _distribution() is not None else _tensorflow_predict(model, inputs)
    return found[:size]


def _jax_step(model: Any) -> Step:
    """Keras' own `train_step`, compiled with the figures begun anew inside and the rate as it stands outside.

    `train_on_batch` would do, but with several hosts each of its assignments between two steps asks all of them.
    """
    import jax

    replicated, divided = _shardings()
    built = False

    def step(state: Any, data: Any) -> Any:
        figures = [jax.numpy.zeros(v.shape, v.dtype) for v in model.metrics_variables]
        logs, after = model.train_step((*state, figures), data)
        return logs, after[:3]

    compiled = jax.jit(step, donate_argnums=0, out_shardings=replicated)

    def call(inputs: Any, shares: NDArray[np.float32], weights: NDArray[np.float32]) -> Mapping[str, Any]:
        data = (inputs, shares, weights)
        nonlocal built
        if not built:
            model._symbolic_build(data_batch=data)  # noqa: SLF001  # what `train_on_batch` does before its first step
            built = True
        data = _mapped(lambda rows: jax.make_array_from_process_local_data(divided, rows), data)
        states = (model.trainable_variables, model.non_trainable_variables, model.optimizer.variables)
        logs, after = compiled(_values(states), data)
        _assign(states, after)
        return {name: float(value) for name, value in logs.items()}

    return call


def _jax_predict(model: Any, inputs: Any) -> Any:
    import jax
    from jax.experimental import multihost_utils

    _, divided = _shardings()
    own = share(len(_leaves(inputs)[0]))
    given = _mapped(lambda rows: jax.make_array_from_process_local_data(divided, rows[own]), inputs)
    model.make_predict_function()
    states = model.trainable_variables, model.non_trainable_variables
    found, after = model.predict_function(_values(states), iter([(given,)]))
    _assign(states, after)
    return np.array(multihost_utils.process_allgather(found, tiled=True) if hosts.joined() else found)


def _values(states: tuple[Any, ...]) -> tuple[list[Any], ...]:
    return tuple([variable.value for variable in state] for state in states)


def _assign(states: tuple[Any, ...], after: Any) -> None:
    """Put back what a compiled function made of values that it was given for good."""
    for state, values in zip(states, after, strict=True):
        for variable, value in zip(state, values, strict=True):
            variable.assign(value)


def _shardings() -> tuple[Any, Any]:
    """Return JAX's words for the same on every device, and for a batch divided among them."""
    import jax

    distribution = _distribution()
    mesh = distribution.device_mesh.backend_mesh
    spec = jax.sharding.PartitionSpec
    return jax.sharding.NamedSharding(mesh, spec()), jax.sharding.NamedSharding(mesh, spec(distribution.batch_dim_name))


def _tensorflow_step(model: Any) -> Step:
    strategy = _strategy()
    for layer in model._flatten_layers():  # noqa: SLF001  # the only walk that enters nested models
        if isinstance(layer, backend.keras().layers.BatchNormalization):
            layer.synchronized = True

    def call(inputs: Any, shares: NDArray[np.float32], weights: NDArray[np.float32]) -> Mapping[str, Any]:
        data = (inputs, shares, weights)
        model._maybe_symbolic_build(data_batch=data)  # noqa: SLF001  # as `train_on_batch`, which divides no batch
        model.make_train_function()
        model.reset_metrics()
        model.train_function(iter([_mapped(lambda rows: _divided(strategy, rows), data)]))
        return {name: float(value) for name, value in model.get_metrics_result().items()}

    return call


def _tensorflow_predict(model: Any, inputs: Any) -> Any:
    strategy = _strategy()
    return model.predict_on_batch(_mapped(lambda rows: _divided(strategy, rows), inputs))


def _divided(strategy: Any, rows: NDArray[Any]) -> Any:
    tf = backend.tensorflow()
    each = len(rows) // strategy.num_replicas_in_sync

    def part(context: Any) -> Any:
        start = context.replica_id_in_sync_group * each
        return tf.constant(rows[start : start + each])

    return strategy.experimental_distribute_values_from_function(part)


def _distribution() -> Any:
    return backend.keras().distribution.distribution() if backend.name() == "jax" else None


def _strategy() -> Any:
    if backend.name() != "tensorflow":
        return None
    tf = backend.tensorflow()
    return tf.distribute.get_strategy() if tf.distribute.has_strategy() else None


def _here() -> list[str]:
    """Return the devices of this host."""
    if backend.name() != "jax":
        return list(backend.devices())
    import jax

    return [f"{d.platform}:{d.id}" for d in jax.local_devices()]


def _of_each_host(count: int) -> list[Any]:
    import jax

    found: dict[int, list[Any]] = {}
    for device in jax.devices():
        found.setdefault(device.process_index, []).append(device)
    return [device for rank in sorted(found) for device in found[rank][:count]]


def _alike(count: int) -> bool:
    import jax

    return len(_of_each_host(count)) == count * int(jax.process_count())


def _leaves(inputs: Any) -> list[Any]:
    return list(inputs) if isinstance(inputs, list | tuple) else [inputs]


def _mapped(change: Callable[[Any], Any], inputs: Any) -> Any:
    if isinstance(inputs, list | tuple):
        return type(inputs)(_mapped(change, part) for part in inputs)
    return change(inputs)
