"""Run Keras' compiled steps outside of `fit`, and read the state of its optimizers."""

from __future__ import annotations

from typing import Any

from sightline._keras.process_state import silence_logging


def build_for_batch(model: Any, data: Any) -> None:
    """Create the variables of a compiled `model`'s optimizer and metrics, as the first `train_on_batch` does.

    `data` is a batch (inputs, labels, weights); only its shapes and dtypes matter. Does nothing if all variables exist.
    """
    build = getattr(model, "_maybe_symbolic_build", model._symbolic_build)  # the first supports TensorFlow's replicas
    build(data_batch=data)


def train_on_batch(model: Any, inputs: Any, labels: Any, sample_weight: Any = None) -> dict[str, Any]:
    """Run one training step of a compiled `model` and return its metrics.

    TensorFlow's warnings about retracing are dropped: every training stage and batch size is compiled once.
    """
    with silence_logging("tensorflow"):
        return dict(model.train_on_batch(inputs, labels, sample_weight=sample_weight, return_dict=True))


def predict_on_batch(model: Any, inputs: Any) -> Any:
    """Return the outputs of `model`, without TensorFlow's warnings about retracing; see `train_on_batch`."""
    with silence_logging("tensorflow"):
        return model.predict_on_batch(inputs)


def run_train_function(model: Any, data: Any) -> dict[str, Any]:
    """Run one step of a compiled `model` on TensorFlow and return its metrics.

    `data` is a batch that is already distributed to the replicas, which `train_on_batch` does not support.
    """
    model.make_train_function()
    model.reset_metrics()
    with silence_logging("tensorflow"):
        model.train_function(iter([data]))
    return dict(model.get_metrics_result())


def run_predict_function(model: Any, values: tuple[list[Any], ...], inputs: Any) -> tuple[Any, tuple[list[Any], ...]]:
    """Return the outputs of `model` on JAX for `inputs` that are already sharded, and the new values of its variables.

    `values` are the values of its trainable and of its other variables, which the call may donate. `predict_on_batch`
    would gather the inputs on one device.
    """
    model.make_predict_function()
    outputs, new_values = model.predict_function(values, iter([(inputs,)]))
    return outputs, new_values


def find_rate_index(optimizer: Any) -> int:
    """Return the index of the learning rate in the variables of an `optimizer`; Keras has no public API for it."""
    rate = getattr(optimizer, "inner_optimizer", optimizer)._learning_rate
    return next(index for index, variable in enumerate(optimizer.variables) if variable is rate)


def pair_weights_with_ema(optimizer: Any) -> list[tuple[Any, Any]]:
    """Return each trainable weight with its exponential moving average; empty if the built `optimizer` has none.

    Keras can only overwrite the weights with their averages. ``inner_optimizer`` unwraps float16's loss scaling.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if not optimizer.use_ema:
        return []
    return list(zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True))


def seed_dropout(model: Any) -> None:
    """Make dropout use its own seed on PyTorch, as on the other backends; checkpoints save this seed.

    For a layer without an explicit seed (``_initial_seed``), Keras uses PyTorch's global random state, and a resumed
    run would draw different masks.
    """
    import keras

    if keras.backend.backend() != "torch":
        return
    for layer in model.layers:
        seed_generator = getattr(layer, "seed_generator", None)
        if seed_generator is not None:
            seed_generator._initial_seed = int(seed_generator.state.value[0])
