"""The fused kernels compute the same as Keras' own layers and optimizers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from networks import make_plan, random_images
from sightline import backend
from sightline._keras.fused_kernels import use_fused_adam, use_fused_kernels
from sightline.config import OptimizerConfig
from sightline.models.build import build_model
from sightline.training.optimizers import build_optimizer as made

TENSORFLOW = pytest.mark.skipif(backend.name() != "tensorflow", reason="the kernels are TensorFlow's")
SHAPE = (4, 6, 5, 3)


def run_batch_norm_step(policy: str, *, use_fused: bool, **options: Any) -> tuple[dict[str, Any], bool]:
    """Return outputs, gradients and statistics of one BatchNormalization step, and whether its graph is fused."""
    keras, tf = backend.keras(), backend.tensorflow()
    rng = np.random.default_rng(0)
    inputs = keras.Input(SHAPE[1:])
    model = keras.Model(inputs, keras.layers.BatchNormalization(dtype=policy, momentum=0.9, **options)(inputs))
    model.set_weights([np.asarray(rng.uniform(0.5, 2, weight.shape), np.float32) for weight in model.weights])
    if use_fused:
        use_fused_kernels(model)
    target = tf.constant(rng.normal(size=SHAPE), "float32")

    @tf.function  # type: ignore[untyped-decorator]
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = model(x, training=True)
            loss = tf.reduce_sum(tf.cast(outputs, "float32") * target)
        return outputs, tape.gradient(loss, [x, *model.trainable_variables])

    x = tf.constant(rng.normal(3, 2, SHAPE), "float32")
    outputs, gradients = step(x)
    names = {operation.type for operation in step.get_concrete_function(x).graph.get_operations()}
    results = {"outputs": outputs} | {f"gradient {index}": value for index, value in enumerate(gradients)}
    moving_stats = {weight.path: weight.numpy() for weight in model.non_trainable_variables}
    values = {name: tf.cast(value, "float32").numpy() for name, value in results.items()}
    return values | {name.split("/")[-1]: value for name, value in moving_stats.items()}, "FusedBatchNormV3" in names


@TENSORFLOW
@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}], ids=str)
def test_batch_normalization_matches_keras(options: dict[str, bool]) -> None:
    """Outputs, gradients and moving statistics match; the variance has no Bessel's correction."""
    fused_values, fused = run_batch_norm_step("float32", use_fused=True, **options)
    keras_values, unfused = run_batch_norm_step("float32", use_fused=False, **options)
    assert fused
    assert not unfused
    assert fused_values.keys() == keras_values.keys()
    for name, value in keras_values.items():
        np.testing.assert_allclose(fused_values[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


@TENSORFLOW
def test_batch_normalization_in_bfloat16_is_close() -> None:
    fused_values, fused = run_batch_norm_step("mixed_bfloat16", use_fused=True)
    keras_values, _ = run_batch_norm_step("float32", use_fused=False)
    assert fused
    for name, value in keras_values.items():
        np.testing.assert_allclose(fused_values[name], value, rtol=0.05, atol=0.2, err_msg=name)


@TENSORFLOW
@pytest.mark.parametrize("unchanged", [{"axis": 1}, {"renorm": True}, {"dtype": "float64"}], ids=str)
def test_what_the_kernel_cannot_do_is_left_to_keras(unchanged: dict[str, Any]) -> None:
    _, fused = run_batch_norm_step(unchanged.pop("dtype", "float32"), use_fused=True, **unchanged)
    assert not fused


@TENSORFLOW
def test_only_strided_depthwise_convolutions_stay_in_float32() -> None:
    keras = backend.keras()
    model = build_model(make_plan("mobilenetv2", options={"precision": "mixed_bfloat16"})).model
    depthwise = [layer for layer in model.layers if isinstance(layer, keras.layers.DepthwiseConv2D)]
    strided_and_dtype = {(max(layer.strides) > 1, layer.compute_dtype) for layer in depthwise}
    assert strided_and_dtype == {(True, "float32"), (False, "bfloat16")}
    probabilities = model.predict_on_batch(random_images(2, 32))["probabilities"]
    assert probabilities.dtype == np.float32
    assert np.isfinite(probabilities).all()


def run_optimizer_steps(optimizer: Any) -> tuple[list[Any], bool]:
    """Return weights and state after five steps, and whether the graph of a step has the fused Adam operation."""
    keras, tf = backend.keras(), backend.tensorflow()
    rng = np.random.default_rng(1)
    weights = [keras.Variable(rng.normal(size=shape).astype("float32")) for shape in ((3, 3, 2, 4), (4,))]
    optimizer.build(weights)

    @tf.function  # type: ignore[untyped-decorator]
    def step(*gradients: Any) -> None:
        optimizer.apply(gradients)

    gradients: list[Any] = []
    for turn in range(5):
        optimizer.learning_rate.assign(0.01 * (turn + 1))
        gradients = [tf.constant(rng.normal(size=weight.shape), "float32") for weight in weights]
        step(*gradients)
    graph = step.get_concrete_function(*gradients).graph
    kinds = {operation.type for operation in graph.get_operations()}
    kinds |= {node.op for function in graph.as_graph_def().library.function for node in function.node_def}
    return [value.numpy() for value in (*weights, *optimizer.variables)], "ResourceApplyAdam" in kinds


@TENSORFLOW
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Adam", {}),
        ("Adam", {"beta_1": 0.7, "beta_2": 0.95, "epsilon": 0.1}),
        ("Adam", {"use_ema": True, "ema_momentum": 0.5, "global_clipnorm": 1.0}),
        ("AdamW", {"weight_decay": 0.1}),
    ],
    ids=str,
)
def test_adam_in_one_operation_is_that_of_keras(name: str, options: dict[str, Any]) -> None:
    """Weights, moments, step counts and averages match, with a learning rate that changes at each step."""
    optimizer_class = getattr(backend.keras().optimizers, name)
    fused_optimizer = optimizer_class(**options)
    use_fused_adam(fused_optimizer)
    values, is_fused = run_optimizer_steps(fused_optimizer)
    keras_values, keras_is_fused = run_optimizer_steps(optimizer_class(**options))
    assert is_fused
    assert not keras_is_fused
    for actual, expected in zip(values, keras_values, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@TENSORFLOW
def test_amsgrad_is_left_to_keras() -> None:
    optimizer = backend.keras().optimizers.Adam(amsgrad=True)
    use_fused_adam(optimizer)
    assert not run_optimizer_steps(optimizer)[1]


@TENSORFLOW
@pytest.mark.parametrize(("name", "one"), [("adam", True), ("adamw", True), ("rmsprop", False)])
def test_training_uses_fused_adam(name: Any, one: bool) -> None:
    assert run_optimizer_steps(made(OptimizerConfig(name=name), 0.01))[1] == one
