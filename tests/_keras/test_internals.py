"""What `sightline._keras` relies on in Keras and its backends; each failure says what a new release changed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from sightline import backend
from sightline._keras import CHECKED_VERSIONS, graphs, imports, training_steps
from sightline._keras.process_state import seed_new_layers

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
PACKAGES = {"tensorflow": "tensorflow-cpu", "ai_edge_litert": "ai-edge-litert"}  # whose name is not that of the module
pytestmark = pytest.mark.backends


@contextmanager
def relies_on(what: str, module: str) -> Iterator[None]:
    """Turn any failure in the block into one that says what has changed and what to do."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # whatever Keras raises
        version = importlib.metadata.version("keras")
        pytest.fail(
            f"Keras {version} on {backend.name()} changed {what} ({type(error).__name__}: {error}): adapt "
            f"src/sightline/_keras/{module}.py, or lower the upper bound in pyproject.toml."
        )


def make_model() -> Any:
    """Return a functional model that holds a sequential and a functional one, with dropout."""
    keras = backend.keras()
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dropout(0.5)], name="inner")
    entry = keras.Input((3,))
    other = keras.Model(entry, keras.layers.Dense(2, name="last")(entry), name="other")
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.ops.add(other(inner(inputs)), 1.0))


def compile_model(model: Any, **options: Any) -> tuple[Any, Any]:
    keras = backend.keras()
    model.compile(optimizer=keras.optimizers.Adam(0.1, **options), loss="mse")
    rng = np.random.default_rng(0)
    return rng.normal(size=(8, 4)).astype(np.float32), rng.normal(size=(8, 2)).astype(np.float32)


def test_keras_can_be_told_that_tensorflow_is_missing() -> None:
    backend.keras()
    with relies_on("keras.src.utils.module_utils", "imports"):
        from keras.src.utils import module_utils

        lazy = type(module_utils.tensorflow)("json")
        assert lazy.available
        lazy._available = False
        assert not lazy.available


@pytest.mark.parametrize("package", CHECKED_VERSIONS)
def test_the_installed_release_was_checked(package: str) -> None:
    try:
        installed = Version(importlib.metadata.version(PACKAGES.get(package, package)))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    checked = Version(CHECKED_VERSIONS[package])
    assert installed.release[:2] <= checked.release, (
        f"{package} {installed} is newer than {checked}, which src/sightline/_keras was checked with: run `make test "
        "test-backends`, then raise CHECKED_VERSIONS and the upper bound in pyproject.toml."
    )


@pytest.mark.parametrize("package", CHECKED_VERSIONS)
def test_no_unchecked_release_is_installed_by_pip(package: str) -> None:
    extras = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    requirements = [Requirement(line) for lines in extras.values() for line in lines]
    specifiers = [r.specifier for r in requirements if r.name in {package, PACKAGES.get(package)}]
    major, minor = Version(CHECKED_VERSIONS[package]).release
    assert specifiers
    for specifier in specifiers:
        assert f"{major}.{minor}.9" in specifier
        assert f"{major}.{minor + 1}" not in specifier, f"{package} needs the upper bound <{major}.{minor + 1}"


def test_the_nodes_of_a_graph_are_listed() -> None:
    model = make_model()
    with relies_on("the nodes of a graph", "graphs"):
        nodes = graphs.list_nodes(model)
        assert [node.is_input for node in nodes] == [True, False, False, False]
        assert [node.operation.name for node in nodes[1:3]] == ["inner", "other"]
        assert [graphs.is_graph(node.operation) for node in nodes] == [False, True, True, False]
        assert nodes[2].input_tensors[0] is nodes[1].outputs[0]
        sequential = graphs.list_nodes(nodes[1].operation)
        assert [type(node.operation).__name__ for node in sequential] == ["InputLayer", "Dense", "Dropout"]


def test_the_arguments_of_a_call_are_known() -> None:
    keras = backend.keras()
    node = graphs.list_nodes(make_model())[-1]
    with relies_on("the arguments of a node", "graphs"):
        tensor, constant = graphs.get_arguments(node)
        assert (tensor is node.input_tensors[0], constant) == (True, 1.0)
        replacement = keras.KerasTensor((5, 2))
        positional, keyword = graphs.bind_arguments(node, {id(tensor): replacement})
        assert positional[0] is replacement
        assert node.operation.compute_output_spec(*positional, **keyword).shape == (5, 2)


def test_layers_of_nested_models_are_listed() -> None:
    with relies_on("the layers of nested models", "graphs"):
        names = [type(layer).__name__ for layer in graphs.list_layers(make_model())]
        assert (names.count("Dense"), names.count("Dropout")) == (2, 1)


def test_the_names_of_layers_start_again() -> None:
    keras = backend.keras()

    def names() -> list[str]:
        return [keras.layers.Dense(1).name for _ in range(2)]

    with relies_on("the numbering of layers", "graphs"):
        keras.layers.Dense(1)
        with graphs.fresh_layer_names():
            first = names()
        with graphs.fresh_layer_names():
            assert names() == first == ["dense", "dense_1"]
        assert keras.layers.Dense(1).name not in first


def test_variables_can_have_shapes_only() -> None:
    with relies_on("uninitialized variables", "graphs"):
        with graphs.shapes_only():
            layer = backend.keras().layers.Dense(1 << 20)
            layer.build((None, 1 << 30))  # 4 PiB
        assert layer.kernel.shape == (1 << 30, 1 << 20)
        with backend.keras().StatelessScope():
            pass  # its exit would allocate what is left over
        with graphs.shapes_only():
            model = make_model()
        graphs.allocate(model)
        assert all(backend.keras().ops.convert_to_numpy(kernel).any() for kernel in model.trainable_variables[::2])
        if backend.name() == "torch":
            assert len(model.state_dict()) == len(make_model().state_dict()) > 0


@pytest.mark.parametrize(
    ("name", "options"),
    [("Dense", {"units": 3}), ("SeparableConv2D", {"filters": 3, "kernel_size": 2}), ("Dropout", {"rate": 0.5})],
    ids=["dense", "convolution", "dropout"],
)
def test_new_layers_are_seeded_by_python_alone(name: str, options: dict[str, Any]) -> None:
    keras, values = backend.keras(), []
    for other_seed in (1, 2):
        keras.utils.set_random_seed(other_seed)
        with seed_new_layers(7):
            layer = getattr(keras.layers, name)(**options)
            layer.build((None, 8, 8, 3))
        values.append([keras.ops.convert_to_numpy(variable) for variable in layer.variables])
    with relies_on("what seeds a new layer", "process_state"):
        assert len(values[0]) > 0
        for first, second in zip(*values, strict=True):
            np.testing.assert_array_equal(first, second)


def test_variables_are_made_before_the_first_step() -> None:
    scope: Any = nullcontext()
    if backend.name() == "tensorflow":  # elsewhere than in a strategy, tracing the first step creates them
        scope = backend.tensorflow().distribute.MirroredStrategy(["CPU:0"]).scope()
    with scope, relies_on("how the first step creates variables", "training_steps"):
        model = make_model()
        inputs, targets = compile_model(model)
        training_steps.build_for_batch(model, (inputs, targets, np.ones(8, np.float32)))
        assert model.optimizer.built
        shapes = {tuple(variable.shape) for variable in model.optimizer.variables}
        assert shapes == {()} | {tuple(variable.shape) for variable in model.trainable_variables}


def test_averages_belong_to_their_weights() -> None:
    keras, model = backend.keras(), make_model()
    inputs, targets = compile_model(model, use_ema=True, ema_momentum=0.5)
    training_steps.train_on_batch(model, inputs, targets)  # the averages are the weights
    before = [keras.ops.convert_to_numpy(variable).copy() for variable in model.trainable_variables]
    training_steps.train_on_batch(model, inputs, targets)
    with relies_on("the averages of an optimizer", "training_steps"):
        pairs = training_steps.pair_weights_with_ema(model.optimizer)
        assert len(pairs) == len(before) == 4
        for (weight, average), start in zip(pairs, before, strict=True):
            value, mean = keras.ops.convert_to_numpy(weight), keras.ops.convert_to_numpy(average)
            assert not np.allclose(value, start)
            np.testing.assert_allclose(mean, (start + value) / 2, atol=1e-6)


@pytest.mark.skipif(backend.name() != "tensorflow", reason="this step runs on TensorFlow only")
def test_a_train_function_takes_an_iterator_of_batches() -> None:
    model = make_model()
    inputs, targets = compile_model(model)
    with relies_on("the train function", "training_steps"):
        batch = (*map(backend.keras().ops.convert_to_tensor, (inputs, targets)), np.ones(8, np.float32))
        training_steps.build_for_batch(model, batch)
        first = training_steps.run_train_function(model, batch)
        assert float(training_steps.run_train_function(model, batch)["loss"]) != float(first["loss"])


@pytest.mark.skipif(backend.name() != "jax", reason="this step runs on JAX only")
def test_a_predict_function_takes_values_and_an_iterator() -> None:
    model = make_model()
    inputs, _ = compile_model(model)
    expected = model.predict_on_batch(inputs)
    with relies_on("the predict function", "training_steps"):
        states = model.trainable_variables, model.non_trainable_variables
        values = tuple([variable.value for variable in state] for state in states)
        outputs, _ = training_steps.run_predict_function(model, values, inputs)
        np.testing.assert_allclose(outputs, expected, atol=1e-6)


@pytest.mark.skipif(backend.name() != "torch", reason="only on PyTorch does Keras' dropout use a global random state")
def test_dropout_on_pytorch_follows_the_seed_of_its_layer() -> None:
    keras, masks = backend.keras(), []
    for other_seed in (1, 2):
        with seed_new_layers(7):
            model = keras.Sequential([keras.Input((64,)), keras.layers.Dropout(0.5)])
        training_steps.seed_dropout(model)
        keras.utils.set_random_seed(other_seed)
        masks.append(keras.ops.convert_to_numpy(model(np.ones((1, 64), np.float32), training=True)))
    with relies_on("the seed of dropout", "training_steps"):
        np.testing.assert_array_equal(*masks)


@pytest.mark.parametrize("module", sorted(imports._LAZY_MODULES))
def test_what_is_imported_late_exists(module: str) -> None:
    with relies_on("its modules", "imports"):
        assert importlib.util.find_spec(module) is not None


def test_the_quantizer_takes_the_arguments_that_it_is_given() -> None:
    quantization = imports.import_onnx_runtime("onnxruntime.quantization")
    names = set(inspect.signature(quantization.QDQQuantizer).parameters)
    used = {"model", "per_channel", "reduce_range", "weight_qType", "activation_qType", "tensors_range"}
    used |= {"nodes_to_quantize", "nodes_to_exclude", "op_types_to_quantize", "extra_options"}
    assert used == names, "ONNX Runtime changed QDQQuantizer: adapt src/sightline/export/quantize.py"
