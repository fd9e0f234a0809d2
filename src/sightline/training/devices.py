"""Data-parallel training: split each batch over several devices, using Keras' own distribution.

JAX: `keras.distribution.DataParallel`. A step is compiled for the global batch, which is sharded over the devices;
batch means, including those of batch normalization, are over the global batch. TensorFlow:
`tf.distribute.MirroredStrategy`. A step is compiled for one replica's slice, so batch normalization is set to
synchronize. PyTorch: not supported by Keras.

The active distribution is known only to Keras (`Spread.scope`); outside it, every function here works on one device.
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
"""Maps this host's rows of a batch (inputs, soft labels [n, K], weights [n]) to the global batch's mean metrics."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The device distribution of a model; `made` is the backend's own object, None for a single device."""

    made: Any = None

    def scope(self) -> AbstractContextManager[Any]:
        """Return a context in which models are built and trained on all devices."""
        return nullcontext() if self.made is None else self.made.scope()


def settled(device: DeviceConfig, processes: int = 1) -> DeviceConfig:
    """Return `device` with the number of devices per host and the number of hosts filled in.

    Raises `UsageError` if there are too few devices, or if the backend does not support several.
    """
    _check_gpus(device)
    found = replace(device, count=device.count or len(_here()), hosts=processes)
    _check(found)
    return found


def _check_gpus(device: DeviceConfig) -> None:
    """Raise `UsageError` if the settings select GPUs that the backend cannot see: it would train on the CPU."""
    here = [name for name in _here() if not name.startswith(("cpu", "tpu"))]
    if device.gpus and len(here) < len(device.gpus):
        seen = f"only {len(here)} of them" if here else "no GPU"
        raise UsageError(
            f"device.gpus is {list(device.gpus)}, but {backend.name()} sees {seen}: leave it unset to train on "
            f"{_here()[0]}, or check the GPU driver and that {backend.name()} is installed with GPU support."
        )


def _check(device: DeviceConfig) -> None:
    here, count = _here(), device.count
    if count > len(here):
        raise UsageError(
            f"device.count is {count}, but this host has only {', '.join(here)}: use --devices {len(here)}, or all. "
            "(A run resumes on as many devices as it was started with; see device.count in its config.toml.)"
        )
    if count * device.hosts > 1 and backend.name() == "torch":
        raise UsageError(
            "Keras cannot train on several devices with PyTorch: use --devices 1, or another backend "
            "(device.backend=jax or tensorflow)."
        )
    if device.hosts > 1 and not _alike(count):
        raise UsageError(
            f"Not every host has {plural(count, 'device')}: use --devices with the smallest number that any host has."
        )


def spread(device: DeviceConfig) -> Spread:
    """Return the distribution over the devices in `device`, as resolved by `settled`; raises as `settled` does."""
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
    """Return the number of devices, on all hosts, that share a step in the current scope."""
    distribution = _distribution()
    if distribution is not None:
        return int(distribution.num_model_replicas)
    strategy = _strategy()
    return 1 if strategy is None else int(strategy.num_replicas_in_sync)


def scaled(config: DeviceConfig, size: int, rate: float) -> tuple[int, float]:
    """Return the global batch size and the learning rate, scaled by the number of devices.

    The rule is ``device.scaling``; ``linear`` follows Goyal et al., 2017, arXiv:1706.02677. Raises `UsageError` if the
    batch cannot be divided evenly.
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
    """Return the batch size for `count` images: at most `size`, or `count` rounded up to a multiple of the devices.

    Rows beyond `count` would only pad the batch, at weight 0, and cost as much as real ones.
    """
    each = replicas()
    return min(size, -(-max(count, 1) // each) * each)


def share(size: int) -> slice:
    """Return the rows that this host loads of each batch of `size`."""
    if not hosts.joined() or _distribution() is None:
        return slice(0, size)
    import jax

    rows = size // jax.process_count()
    return slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)


def parts() -> int:
    """Return the number of slices of a batch that are augmented and trained independently of each other."""
    strategy = _strategy()
    return 1 if strategy is None else int(strategy.num_replicas_in_sync)


def stepper(model: Any) -> Step:
    """Return a function that runs one training step of a compiled Keras `model` on all devices of the scope."""
    if _distribution() is not None:
        return _jax_step(model)
    if _strategy() is not None:
        return _tensorflow_step(model)

    def step(inputs: Any, shares: NDArray[np.float32], weights: NDArray[np.float32]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = model.train_on_batch(inputs, shares, sample_weight=weights, return_dict=True)
        return found

    return step


def predict_on_batch(model: Any, inputs: Any) -> Any:
    """Return the outputs of `model` for a batch, computed on all devices of the scope; every host passes all rows."""
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
    """Compile Keras' own `train_step`; metrics are reset inside each step, the learning rate is set outside.

    `train_on_batch` would work too, but with several hosts each of its assignments between steps synchronizes them all.
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
            model._symbolic_build(data_batch=data)  # noqa: SLF001  # as `train_on_batch` does before its first step
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
    """Store the values that a compiled function returned in place of its donated buffers."""
    for state, values in zip(states, after, strict=True):
        for variable, value in zip(state, values, strict=True):
            variable.assign(value)


def _shardings() -> tuple[Any, Any]:
    """Return JAX's shardings for values replicated on every device, and for a batch split over them."""
    import jax

    distribution = _distribution()
    mesh = distribution.device_mesh.backend_mesh
    spec = jax.sharding.PartitionSpec
    return jax.sharding.NamedSharding(mesh, spec()), jax.sharding.NamedSharding(mesh, spec(distribution.batch_dim_name))


def _tensorflow_step(model: Any) -> Step:
    strategy = _strategy()
    for layer in model._flatten_layers():  # noqa: SLF001  # the only traversal that enters nested models
        if isinstance(layer, backend.keras().layers.BatchNormalization):
            layer.synchronized = True

    def call(inputs: Any, shares: NDArray[np.float32], weights: NDArray[np.float32]) -> Mapping[str, Any]:
        data = (inputs, shares, weights)
        model._maybe_symbolic_build(data_batch=data)  # noqa: SLF001  # as `train_on_batch`, which splits no batch
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
    """Return the names of the devices of this host."""
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
