"""Data-parallel training: split each batch over several devices, using Keras' own distribution.

JAX: `keras.distribution.DataParallel`. A step is compiled for the global batch, which is sharded over the devices;
batch means, including batch normalization's, are over the global batch. TensorFlow:
`tf.distribute.MirroredStrategy`. A step is compiled for one replica's slice, so batch normalization is set to
synchronize. PyTorch: not supported by Keras.

Only Keras keeps track of the active distribution (`Distribution.scope`); outside its scope, every function here uses
one device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline._keras import graphs, training_steps
from sightline.config import DeviceConfig
from sightline.distributed import cluster
from sightline.errors import UsageError, plural

TrainStep = Callable[[Any, NDArray[np.float32], NDArray[np.float32]], Mapping[str, Any]]
"""Maps this host's rows of a batch (inputs, soft labels [n, K], weights [n]) to the global batch's mean metrics."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """The device distribution of a model.

    `keras_distribution` is the backend's own object, None for a single device.
    """

    keras_distribution: Any = None

    def scope(self) -> AbstractContextManager[Any]:
        """Return a context in which models are built and trained on all devices."""
        return nullcontext() if self.keras_distribution is None else self.keras_distribution.scope()


def resolve_devices(device: DeviceConfig, processes: int = 1) -> DeviceConfig:
    """Return `device` with the number of devices per host and the number of hosts filled in.

    Raises `UsageError` if there are too few devices, or if the backend does not support several.
    """
    _check_gpus(device)
    resolved = replace(device, num_devices=device.num_devices or len(backend.list_local_devices()), num_hosts=processes)
    _check_count(resolved)
    return resolved


def _check_gpus(device: DeviceConfig) -> None:
    """Raise `UsageError` if the settings select GPUs that the backend cannot see: it would train on the CPU."""
    local_gpus = [name for name in backend.list_local_devices() if not name.startswith(("cpu", "tpu"))]
    if device.gpus and len(local_gpus) < len(device.gpus):
        visible = f"only {len(local_gpus)} of them" if local_gpus else "no GPU"
        raise UsageError(
            f"device.gpus is {list(device.gpus)}, but {backend.name()} sees {visible}: leave it unset to train on "
            f"{backend.list_local_devices()[0]}, or check the GPU driver and that {backend.name()} is "
            "installed with GPU support."
        )


def _check_count(device: DeviceConfig) -> None:
    local_devices, count = backend.list_local_devices(), device.num_devices
    if count > len(local_devices):
        raise UsageError(
            f"device.num_devices is {count}, but this host has only {', '.join(local_devices)}: use "
            f"--devices {len(local_devices)}, or all. "
            "(A run resumes on as many devices as it was started with; see device.num_devices in its config.toml.)"
        )
    if count * device.num_hosts > 1 and backend.name() == "torch":
        raise UsageError(
            "Keras cannot train on several devices with PyTorch: use --devices 1, or another backend "
            "(device.backend=jax or tensorflow)."
        )
    if device.num_hosts > 1 and not _every_host_has(count):
        raise UsageError(
            f"Not every host has {plural(count, 'device')}: use --devices with the smallest number that any host has."
        )


def create_distribution(device: DeviceConfig) -> Distribution:
    """Return the distribution over the devices in `device`, as resolved by `resolve_devices`.

    Raises as `resolve_devices` does.
    """
    _check_gpus(device)
    if device.num_devices * device.num_hosts == 1:
        return Distribution()
    _check_count(device)
    if backend.name() == "jax":
        keras = backend.keras()
        names = [f"{d.platform}:{d.id}" for d in _list_devices_per_host(device.num_devices)]
        return Distribution(keras.distribution.DataParallel(devices=names, auto_shard_dataset=False))
    tf = backend.tensorflow()
    return Distribution(tf.distribute.MirroredStrategy(backend.list_local_devices()[: device.num_devices]))


def count_replicas() -> int:
    """Return the number of devices on all hosts that share a step in the current scope."""
    distribution = _get_distribution()
    if distribution is not None:
        return int(distribution.num_model_replicas)
    strategy = _get_strategy()
    return 1 if strategy is None else int(strategy.num_replicas_in_sync)


def scale_batch_and_rate(config: DeviceConfig, size: int, rate: float) -> tuple[int, float]:
    """Return the global batch size and the learning rate, scaled by the number of devices.

    The rule is ``device.lr_scaling``; ``linear`` follows Goyal et al., 2017, arXiv:1706.02677. Raises `UsageError` if
    the batch cannot be divided evenly.
    """
    count = count_replicas()
    if config.lr_scaling != "none":
        return size * count, rate * (count if config.lr_scaling == "linear" else count**0.5)
    if size % count:
        raise UsageError(
            f"A batch of {size} cannot be divided evenly among {plural(count, 'device')}: set train.batch_size (and "
            f"that of each stage) to a multiple of {count}, such as {-(-size // count) * count}."
        )
    return size, rate


def limit_batch_size(size: int, count: int) -> int:
    """Return the batch size for `count` images: at most `size`, or `count` rounded up to a multiple of the devices.

    Rows beyond `count` would only pad the batch, at weight 0, and cost as much as real rows.
    """
    divisor = count_replicas()
    return min(size, -(-max(count, 1) // divisor) * divisor)


def get_local_rows(size: int) -> slice:
    """Return the rows of each batch of `size` that this host loads."""
    if not cluster.is_connected() or _get_distribution() is None:
        return slice(0, size)
    import jax

    rows = size // jax.process_count()
    return slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)


def count_slices() -> int:
    """Return the number of slices of a batch that are augmented and trained independently of each other."""
    strategy = _get_strategy()
    return 1 if strategy is None else int(strategy.num_replicas_in_sync)


def make_train_step(model: Any) -> TrainStep:
    """Return a function that runs one training step of a compiled Keras `model` on all devices of the scope."""
    if _get_distribution() is not None:
        return _make_jax_step(model)
    if _get_strategy() is not None:
        return _make_tensorflow_step(model)

    def step(inputs: Any, soft_labels: NDArray[np.float32], weights: NDArray[np.float32]) -> Mapping[str, Any]:
        return training_steps.train_on_batch(model, inputs, soft_labels, weights)

    return step


def predict_on_batch(model: Any, inputs: Any) -> Any:
    """Return the outputs of `model` for a batch, using all devices of the scope; every host passes all rows."""
    count = count_replicas()
    if count == 1:
        return training_steps.predict_on_batch(model, inputs)
    size = len(_list_leaves(inputs)[0])
    padding = -size % count
    if padding:
        inputs = _map_inputs(lambda rows: np.concatenate([rows, np.repeat(rows[-1:], padding, axis=0)]), inputs)
    outputs = (
        _predict_with_jax(model, inputs) if _get_distribution() is not None else _predict_with_tensorflow(model, inputs)
    )
    return outputs[:size]


def _make_jax_step(model: Any) -> TrainStep:
    """Compile Keras' own `train_step`; metrics are reset inside each step, the learning rate is set outside.

    `train_on_batch` would work too, but with several hosts, each of its assignments between steps synchronizes them.
    """
    import jax

    replicated_sharding, batch_sharding = _get_shardings()
    built = False

    def step(state: Any, data: Any) -> Any:
        metrics = [jax.numpy.zeros(v.shape, v.dtype) for v in model.metrics_variables]
        logs, new_values = model.train_step((*state, metrics), data)
        return logs, new_values[:3]

    compiled = jax.jit(step, donate_argnums=0, out_shardings=replicated_sharding)

    def call(inputs: Any, soft_labels: NDArray[np.float32], weights: NDArray[np.float32]) -> Mapping[str, Any]:
        data = (inputs, soft_labels, weights)
        nonlocal built
        if not built:
            training_steps.build_for_batch(model, data)
            built = True
        data = _map_inputs(lambda rows: jax.make_array_from_process_local_data(batch_sharding, rows), data)
        states = (model.trainable_variables, model.non_trainable_variables, model.optimizer.variables)
        logs, new_values = compiled(read_values(states), data)
        assign_values(states, new_values)
        return {name: float(value) for name, value in logs.items()}

    return call


def _predict_with_jax(model: Any, inputs: Any) -> Any:
    import jax
    from jax.experimental import multihost_utils

    _, batch_sharding = _get_shardings()
    local_rows = get_local_rows(len(_list_leaves(inputs)[0]))
    sharded_inputs = _map_inputs(
        lambda rows: jax.make_array_from_process_local_data(batch_sharding, rows[local_rows]), inputs
    )
    states = model.trainable_variables, model.non_trainable_variables
    outputs, new_values = training_steps.run_predict_function(model, read_values(states), sharded_inputs)
    assign_values(states, new_values)
    return np.array(multihost_utils.process_allgather(outputs, tiled=True) if cluster.is_connected() else outputs)


def read_values(states: tuple[Any, ...]) -> tuple[list[Any], ...]:
    """Return the values of several lists of Keras variables on JAX, without copying them."""
    return tuple([variable.value for variable in state] for state in states)


def assign_values(states: tuple[Any, ...], new_values: Any) -> None:
    """Store the values that a compiled function returned in place of its donated buffers."""
    for state, values in zip(states, new_values, strict=True):
        for variable, value in zip(state, values, strict=True):
            variable.assign(value)


def _get_shardings() -> tuple[Any, Any]:
    """Return JAX's shardings for values replicated on every device, and for a batch split over them."""
    import jax

    distribution = _get_distribution()
    mesh = distribution.device_mesh.backend_mesh
    spec = jax.sharding.PartitionSpec
    return jax.sharding.NamedSharding(mesh, spec()), jax.sharding.NamedSharding(mesh, spec(distribution.batch_dim_name))


def _make_tensorflow_step(model: Any) -> TrainStep:
    strategy = _get_strategy()
    for layer in graphs.list_layers(model):
        if isinstance(layer, backend.keras().layers.BatchNormalization):
            layer.synchronized = True

    def call(inputs: Any, soft_labels: NDArray[np.float32], weights: NDArray[np.float32]) -> Mapping[str, Any]:
        data = (inputs, soft_labels, weights)
        training_steps.build_for_batch(model, data)
        slices = _map_inputs(lambda rows: _distribute_rows(strategy, rows), data)
        logs = training_steps.run_train_function(model, slices)
        return {name: float(value) for name, value in logs.items()}

    return call


def _predict_with_tensorflow(model: Any, inputs: Any) -> Any:
    strategy = _get_strategy()
    return training_steps.predict_on_batch(model, _map_inputs(lambda rows: _distribute_rows(strategy, rows), inputs))


def _distribute_rows(strategy: Any, rows: NDArray[Any]) -> Any:
    tf = backend.tensorflow()
    rows_per_replica = len(rows) // strategy.num_replicas_in_sync

    def take_slice(context: Any) -> Any:
        start = context.replica_id_in_sync_group * rows_per_replica
        return tf.constant(rows[start : start + rows_per_replica])

    return strategy.experimental_distribute_values_from_function(take_slice)


def _get_distribution() -> Any:
    return backend.keras().distribution.distribution() if backend.name() == "jax" else None


def _get_strategy() -> Any:
    if backend.name() != "tensorflow":
        return None
    tf = backend.tensorflow()
    return tf.distribute.get_strategy() if tf.distribute.has_strategy() else None


def _list_devices_per_host(count: int) -> list[Any]:
    import jax

    devices_by_host: dict[int, list[Any]] = {}
    for device in jax.devices():
        devices_by_host.setdefault(device.process_index, []).append(device)
    return [device for rank in sorted(devices_by_host) for device in devices_by_host[rank][:count]]


def _every_host_has(count: int) -> bool:
    import jax

    return len(_list_devices_per_host(count)) == count * int(jax.process_count())


def _list_leaves(inputs: Any) -> list[Any]:
    return list(inputs) if isinstance(inputs, list | tuple) else [inputs]


def _map_inputs(function: Callable[[Any], Any], inputs: Any) -> Any:
    if isinstance(inputs, list | tuple):
        return type(inputs)(_map_inputs(function, item) for item in inputs)
    return function(inputs)
