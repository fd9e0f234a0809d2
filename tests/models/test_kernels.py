"""The fused kernels compute the same as Keras' own layers and optimizers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from networks import pictures, plan
from sightline import backend
from sightline.config import OptimizerConfig
from sightline.models.build import build
from sightline.models.kernels import quicken, quicken_adam
from sightline.training.optimizer import optimizer as made

TENSORFLOW = pytest.mark.skipif(backend.name() != "tensorflow", reason="TensorFlow's kernels")
SHAPE = (4, 6, 5, 3)


def trained(policy: str, *, quick: bool, **options: Any) -> tuple[dict[str, Any], bool]:
    """Return outputs, gradients and statistics of one BatchNormalization step, and whether its graph is fused."""
    keras, tf = backend.keras(), backend.tensorflow()
    rng = np.random.default_rng(0)
    inputs = keras.Input(SHAPE[1:])
    model = keras.Model(inputs, keras.layers.BatchNormalization(dtype=policy, momentum=0.9, **options)(inputs))
    model.set_weights([np.asarray(rng.uniform(0.5, 2, weight.shape), np.float32) for weight in model.weights])
    if quick:
        quicken(model)
    towards = tf.constant(rng.normal(size=SHAPE), "float32")

    @tf.function  # type: ignore[untyped-decorator]
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = model(x, training=True)
            loss = tf.reduce_sum(tf.cast(outputs, "float32") * towards)
        return outputs, tape.gradient(loss, [x, *model.trainable_variables])

    x = tf.constant(rng.normal(3, 2, SHAPE), "float32")
    outputs, gradients = step(x)
    names = {operation.type for operation in step.get_concrete_function(x).graph.get_operations()}
    found = {"outputs": outputs} | {f"gradient {at}": value for at, value in enumerate(gradients)}
    kept = {weight.path: weight.numpy() for weight in model.non_trainable_variables}
    values = {name: tf.cast(value, "float32").numpy() for name, value in found.items()}
    return values | {name.split("/")[-1]: value for name, value in kept.items()}, "FusedBatchNormV3" in names


@TENSORFLOW
@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}], ids=str)
def test_batch_normalisation_is_that_of_keras(options: dict[str, bool]) -> None:
    """Outputs, gradients and moving statistics match; the variance has no Bessel's correction."""
    quick, fused = trained("float32", quick=True, **options)
    plain, unfused = trained("float32", quick=False, **options)
    assert fused
    assert not unfused
    assert quick.keys() == plain.keys()
    for name, value in plain.items():
        np.testing.assert_allclose(quick[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


@TENSORFLOW
def test_batch_normalisation_in_bfloat16_is_as_near_as_its_digits_allow() -> None:
    quick, fused = trained("mixed_bfloat16", quick=True)
    plain, _ = trained("float32", quick=False)
    assert fused
    for name, value in plain.items():
        np.testing.assert_allclose(quick[name], value, rtol=0.05, atol=0.2, err_msg=name)


@TENSORFLOW
@pytest.mark.parametrize("unchanged", [{"axis": 1}, {"renorm": True}, {"dtype": "float64"}], ids=str)
def test_what_the_kernel_cannot_do_is_left_to_keras(unchanged: dict[str, Any]) -> None:
    _, fused = trained(unchanged.pop("dtype", "float32"), quick=True, **unchanged)
    assert not fused


@TENSORFLOW
def test_strided_depthwise_convolutions_alone_stay_in_float32() -> None:
    keras = backend.keras()
    model = build(plan("mobilenetv2", options={"precision": "mixed_bfloat16"})).model
    depthwise = [layer for layer in model.layers if isinstance(layer, keras.layers.DepthwiseConv2D)]
    found = {(max(layer.strides) > 1, layer.compute_dtype) for layer in depthwise}
    assert found == {(True, "float32"), (False, "bfloat16")}
    probabilities = model.predict_on_batch(pictures(2, 32))["probabilities"]
    assert probabilities.dtype == np.float32
    assert np.isfinite(probabilities).all()


def stepped(optimizer: Any) -> tuple[list[Any], bool]:
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
    kind = getattr(backend.keras().optimizers, name)
    quick = kind(**options)
    quicken_adam(quick)
    values, one = stepped(quick)
    plain, other = stepped(kind(**options))
    assert one
    assert not other
    for found, expected in zip(values, plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@TENSORFLOW
def test_amsgrad_is_left_to_keras() -> None:
    optimizer = backend.keras().optimizers.Adam(amsgrad=True)
    quicken_adam(optimizer)
    assert not stepped(optimizer)[1]


@TENSORFLOW
@pytest.mark.parametrize(("name", "one"), [("adam", True), ("adamw", True), ("rmsprop", False)])
def test_training_makes_the_steps_of_adam_in_one_operation(name: Any, one: bool) -> None:
    assert stepped(made(OptimizerConfig(name=name), 0.01))[1] == one
