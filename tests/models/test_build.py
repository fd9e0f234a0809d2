"""Every registered model keeps the contract: uint8 in; probabilities, logits and features out."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, softmax

from networks import GRAPHS, NAMES, RUNS, STATISTICS, build_network, compute_outputs, make_plan, random_images
from sightline import backend
from sightline.config import ModelConfig, StageConfig
from sightline.errors import ModelError, UsageError
from sightline.models.build import ModelSpec, Network, build_model, build_shapes_only, normalize_pixels
from sightline.models.describe import count_parameters, weights_sha256
from sightline.models.entry import Normalize
from sightline.models.registry import ENTRIES
from sightline.training.stages import find_freeze_boundary

CHANNELS = (1, 3)
SCHEMES: tuple[Normalize, ...] = ("unit", "symmetric", "imagenet", "caffe", "raw", "standardize")


def count_backbone_parameters(model: Any) -> int:
    """Return the number of parameters before the head."""
    head = ("fc", "predictions")
    return sum(layer.count_params() for layer in model.layers if not layer.name.startswith(head))


# The contract


@cache
def build_for_two_classes(name: str) -> Network:
    return build_model(make_plan(name))


@pytest.mark.parametrize(("channels", "classes"), [(1, 1000), (3, 2)])
@pytest.mark.parametrize("name", RUNS)
def test_images_in_probabilities_out(name: str, channels: int, classes: int) -> None:
    built_network = (
        build_for_two_classes(name)
        if (channels, classes) == (3, 2)
        else build_model(make_plan(name, channels=channels, classes=classes))
    )
    side = ENTRIES[name].min_input_size
    assert built_network.model.input.dtype == "uint8"
    assert built_network.model.input.shape == (None, side, side, channels)
    predictions = compute_outputs(built_network.model, random_images(3, side, channels))
    assert set(predictions) == {"probabilities", "logits", "features"}
    assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in predictions.values())
    assert predictions["probabilities"].shape == predictions["logits"].shape == (3, classes)
    assert predictions["features"].shape == (3, built_network.model.output["features"].shape[-1])
    np.testing.assert_allclose(predictions["probabilities"].sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(predictions["probabilities"], softmax(predictions["logits"], axis=1), atol=1e-6)
    assert predictions["logits"].std(0).max() > 0, "the output must depend on the image"
    assert built_network.logits.shape == (None, classes)
    assert not built_network.pretrained


@pytest.mark.parametrize("name", RUNS)
def test_saved_network_is_the_same_network(name: str, tmp_path: Path) -> None:
    model, side = build_network(name).model, ENTRIES[name].min_input_size
    model.save(tmp_path / "model.keras")
    loaded = backend.keras().models.load_model(tmp_path / "model.keras", safe_mode=True, compile=False)
    assert weights_sha256(loaded) == weights_sha256(model)
    pixels = random_images(4, side)
    before, after = compute_outputs(model, pixels), compute_outputs(loaded, pixels)
    for key, value in before.items():
        np.testing.assert_array_equal(after[key], value)


@pytest.mark.parametrize("name", RUNS)
def test_seed_decides_the_weights(name: str) -> None:
    first = weights_sha256(build_network(name).model)
    assert weights_sha256(build_model(make_plan(name, classes=3, seed=1)).model) != first
    backend.keras().utils.set_random_seed(5)  # global state and models built earlier must not matter
    assert weights_sha256(build_model(make_plan(name, classes=3)).model) == first


@cache
def build_outline(name: str) -> Network:
    return build_shapes_only(make_plan(name))


@pytest.mark.parametrize("name", GRAPHS)
def test_backbone_names_the_layers_before_the_head(name: str) -> None:
    built_network = build_outline(name)
    layers = [layer.name for layer in built_network.model.layers]
    indices = [layers.index(layer) for layer in built_network.backbone]
    assert indices == sorted(indices)
    assert layers[indices[-1] + 1] in {"pool", "flatten"}
    assert "normalize" not in built_network.backbone
    assert "predictions" not in built_network.backbone
    assert len(set(built_network.backbone)) == len(built_network.backbone) > 2


@pytest.mark.parametrize("name", GRAPHS)
def test_frozen_backbone_ends_in_one_tensor(name: str) -> None:
    built_network = build_outline(name)
    tensor = find_freeze_boundary(built_network, StageConfig(unfreeze=0))
    assert tensor is not None
    first_layer = "fc1" if "fc1" in [layer.name for layer in built_network.model.layers] else "predictions"
    assert tensor.shape == (None, built_network.model.get_layer(first_layer).kernel.shape[0]), (
        "the input of the first trainable layer"
    )


@pytest.mark.parametrize("name", GRAPHS)
def test_layers_are_public_keras_layers_and_not_nested(name: str) -> None:
    layers = backend.keras().layers
    model_layers = build_outline(name).model.layers
    assert {
        type(layer) for layer in model_layers if type(layer) is not getattr(layers, type(layer).__name__, None)
    } == set()
    assert not any(hasattr(layer, "layers") for layer in model_layers), "a nested layer could not be frozen separately"


@cache
def build_gray_outline(name: str) -> Network:
    """Return a network for grayscale images, each with some of a thousand labels."""
    return build_shapes_only(make_plan(name, channels=1, classes=1000, options={"activation": "sigmoid"}))


@pytest.mark.parametrize("name", GRAPHS)
def test_grayscale_images_and_a_thousand_classes(name: str) -> None:
    built_network = build_gray_outline(name)
    assert built_network.model.input.shape[-1] == 1
    assert built_network.logits.shape == (None, 1000)
    pairs = zip(built_network.model.weights, build_outline(name).model.weights, strict=True)
    num_different = sum(len(gray.shape) == 4 and gray.shape[-2] != color.shape[-2] for gray, color in pairs)
    expected = 2 if ENTRIES[name].whitening_layer else 1
    assert num_different == expected, (
        "only the first convolution depends on the channels, and the second if the first one whitens"
    )


@pytest.mark.parametrize("name", RUNS)
def test_one_step_moves_every_weight_that_learns(name: str) -> None:
    keras = backend.keras()
    built_network = build_for_two_classes(name)
    training_model = keras.Model(built_network.model.input, built_network.logits)
    training_model.compile(
        keras.optimizers.Adam(0.01), keras.losses.CategoricalCrossentropy(from_logits=True), run_eagerly=True
    )
    before = [keras.ops.convert_to_numpy(v).copy() for v in training_model.trainable_variables]
    training_model.train_on_batch(
        random_images(8, ENTRIES[name].min_input_size), np.eye(2, dtype=np.float32)[[0, 1] * 4]
    )
    after = [keras.ops.convert_to_numpy(v) for v in training_model.trainable_variables]
    assert all(np.isfinite(value).all() for value in after)
    unchanged = [
        v.path for v, a, b in zip(training_model.trainable_variables, before, after, strict=True) if (a == b).all()
    ]
    assert unchanged == []


@pytest.mark.parametrize(
    ("name", "side", "channels", "classes", "settings", "count"),
    [
        ("cifar10-simple", 32, 3, 10, {}, 4_200_842),
        ("cifar10-deep", 32, 3, 10, {}, 1_676_842),
        ("fashion-cnn", 28, 1, 10, {}, 435_306),
        ("alexnet", 227, 3, 1000, {}, 60_965_224),
        ("alexnet", 227, 3, 1000, {"groups": 2}, 60_965_224),
        ("alexnet", 227, 3, 1000, {"groups": 1}, 62_378_344),
        ("vgg16", 224, 3, 1000, {}, 138_357_544),
        ("vgg16", 224, 3, 4, {}, 134_276_932),
        ("vgg19", 224, 3, 1000, {}, 143_667_240),
        ("resnet50", 224, 3, 1000, {}, 25_636_712),  # these as stated by Keras and the authors of the papers
        ("xception", 299, 3, 1000, {}, 22_910_480),
        ("inceptionv3", 299, 3, 1000, {}, 23_851_784),
        ("densenet121", 224, 3, 1000, {}, 8_062_504),
        ("mobilenet", 224, 3, 1000, {"alpha": 1.0}, 4_253_864),
        ("mobilenetv2", 224, 3, 1000, {"alpha": 1.0}, 3_538_984),
        ("efficientnetb0", 224, 3, 1000, {}, 5_330_571 - 7),  # Keras counts mean, variance and number of its pixels
        ("efficientnetv2b0", 224, 3, 1000, {}, 7_200_312),
        ("convnext-tiny", 224, 3, 1000, {}, 28_589_128),
        pytest.param("nasnetmobile", 224, 3, 1000, {}, 5_326_716, marks=pytest.mark.slow),
        ("squeezenet", 227, 3, 1000, {}, 1_235_496),
        # ResNet-18's 11,689,512, two dense layers per block, mean and variance of 4,800 normalized channels
        ("se-resnet", 224, 3, 1000, {}, 11_689_512 + 2 * (580 + 2_184 + 8_464 + 33_312) + 2 * 4_800),
    ],
    ids=str,
)
def test_parameters_are_those_of_the_source(
    name: str, side: int, channels: int, classes: int, settings: dict[str, Any], count: int
) -> None:
    built_network = build_shapes_only(
        ModelSpec(ModelConfig(name=name, **settings), side, side, channels, classes, pixel_stats=STATISTICS)
    )
    assert built_network.model.count_params() == count


def test_outline_has_the_same_weights_without_values() -> None:
    model, outline_network = build_network("mobilenetv2").model, build_shapes_only(make_plan("mobilenetv2", classes=3))
    assert [(v.path, v.shape) for v in outline_network.model.weights] == [(v.path, v.shape) for v in model.weights]
    build_model(make_plan("cifar10-simple"))  # would initialize variables without a value, unless prevented
    assert all(v._value is None for v in outline_network.model.weights)


def test_backbones_are_those_of_the_papers() -> None:
    assert count_backbone_parameters(build_network("vgg16").model) == 14_714_688
    assert count_backbone_parameters(build_network("mobilenetv2").model) == 410_208
    assert count_parameters(build_network("mobilenetv2").model) == 410_208 + 1280 * 3 + 3


# The head


def test_sigmoid_head_is_one_unit_shown_as_two_classes() -> None:
    built_network = build_model(make_plan("cifar10-deep", head="sigmoid"))
    model = built_network.model
    assert model.get_layer("predictions").units == 1
    pixels = random_images(5, 8)
    unit = backend.keras().Model(model.input, model.get_layer("predictions").output)
    z = np.asarray(unit(pixels, training=False))
    predictions = compute_outputs(model, pixels)
    p = expit(z.astype(np.float64))
    np.testing.assert_allclose(predictions["probabilities"], np.concatenate([1 - p, p], 1), atol=1e-6)
    np.testing.assert_allclose(predictions["logits"], np.concatenate([np.zeros_like(z), z], 1), atol=1e-6)
    assert built_network.logits.shape == (None, 2)


@pytest.mark.parametrize("name", GRAPHS)
def test_every_network_has_one_sigmoid_for_each_of_several_labels(name: str) -> None:
    built_network = build_gray_outline(name)
    last = built_network.model.get_layer("probabilities")
    assert last.output is built_network.model.output["probabilities"]
    assert last.input is built_network.logits
    assert built_network.model.get_layer("predictions").units == 1000
    logits = np.random.default_rng(0).normal(0, 4, (5, 1000)).astype(np.float32)
    np.testing.assert_allclose(np.asarray(last(logits)), expit(logits), rtol=1e-5)


def test_sigmoid_head_survives_saving(tmp_path: Path) -> None:
    model = build_model(make_plan("cifar10-deep", head="sigmoid")).model
    model.save(tmp_path / "model.keras")
    loaded = backend.keras().models.load_model(tmp_path / "model.keras", safe_mode=True)
    pixels = random_images(5, 8)
    np.testing.assert_array_equal(
        compute_outputs(loaded, pixels)["probabilities"], compute_outputs(model, pixels)["probabilities"]
    )


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_head_computes_in_float32_whatever_the_body_does(head: str) -> None:
    keras = backend.keras()
    before = keras.config.dtype_policy().name
    model = build_model(make_plan("cifar10-deep", head=head, options={"precision": "mixed_bfloat16"})).model
    assert keras.config.dtype_policy().name == before
    names = [layer.name for layer in model.layers]
    compute_dtypes = {layer.name: layer.compute_dtype for layer in model.layers}
    assert compute_dtypes["conv1"] == compute_dtypes["fc1"] == "bfloat16"
    assert {compute_dtypes[name] for name in names[names.index("predictions") :]} == {"float32"}
    assert {v.dtype for v in model.variables if "seed" not in v.path} == {"float32"}
    predictions = compute_outputs(model, random_images(2, 8))
    assert all(value.dtype == np.float32 for value in predictions.values())
    np.testing.assert_allclose(predictions["probabilities"].sum(1), 1, atol=1e-6)


def test_policy_is_restored_after_a_failure() -> None:
    keras = backend.keras()
    before = keras.config.dtype_policy().name
    with pytest.raises(ModelError):
        build_model(
            dataclasses.replace(make_plan("fashion-cnn", options={"precision": "mixed_bfloat16"}), pixel_stats=None),
        )
    assert keras.config.dtype_policy().name == before


@pytest.mark.parametrize(("pooling", "features"), [("average", 128), ("max", 128), ("flatten", 9 * 128)])
def test_pooling_decides_the_features(pooling: str, features: int) -> None:
    built_network = build_model(make_plan("fashion-cnn", side=28, pooling=pooling, hidden_units=()))
    assert built_network.model.output["features"].shape == (None, features)
    maps = backend.keras().Model(built_network.model.input, built_network.model.get_layer("pool3").output)
    pixels = random_images(2, 28)
    feature_maps = np.asarray(maps(pixels, training=False))
    reduced = {
        "average": feature_maps.mean((1, 2)),
        "max": feature_maps.max((1, 2)),
        "flatten": feature_maps.reshape(2, -1),
    }[pooling]
    np.testing.assert_allclose(compute_outputs(built_network.model, pixels)["features"], reduced, atol=1e-5)


def test_head_has_the_layers_asked_for() -> None:
    layers = [
        layer.name for layer in build_model(make_plan("fashion-cnn", hidden_units=(8, 4), dropout=0.3)).model.layers
    ]
    assert layers[layers.index("flatten") :][1:5] == ["fc1", "fc1_drop", "fc2", "fc2_drop"]
    model = build_model(make_plan("cifar10-deep", hidden_units=(), dropout=0.0)).model
    layers = [layer.name for layer in model.layers]
    assert not any("drop" in name or name.startswith("fc") for name in layers[layers.index("flatten") :])
    assert build_model(make_plan("fashion-cnn", hidden_units=(), dropout=0.7)).model.get_layer("head_drop").rate == 0.7
    assert build_network("mobilenetv2").model.get_layer("head_drop").rate == ENTRIES["mobilenetv2"].head.dropout


def test_l2_penalizes_kernels_and_nothing_else() -> None:
    keras = backend.keras()
    assert build_network("mobilenetv2").model.losses == []
    model = build_model(make_plan("mobilenetv2", options={"l2": 0.01})).model
    kernels = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables if v.path.endswith("kernel")]
    assert len(kernels) > 50
    expected = 0.01 * sum(float((k.astype(np.float64) ** 2).sum()) for k in kernels)
    assert sum(map(float, model.losses)) == pytest.approx(expected, rel=1e-4)


# Normalization


def normalize_with_keras(pixels: NDArray[np.uint8], scheme: str) -> NDArray[np.float32]:
    channels = pixels.shape[-1]
    inputs = backend.keras().Input(pixels.shape[1:], dtype="uint8")
    model = backend.keras().Model(inputs, normalize_pixels(inputs, scheme, STATISTICS))  # type: ignore[arg-type]
    normalized_pixels = backend.keras().ops.convert_to_numpy(model(pixels))
    assert normalized_pixels.dtype == np.float32
    assert normalized_pixels.shape == (*pixels.shape[:-1], channels)
    return np.asarray(normalized_pixels)


def normalize_with_numpy(pixels: NDArray[np.uint8], scheme: str) -> NDArray[np.float64]:
    x = pixels.astype(np.float64)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    caffe = np.array([103.939, 116.779, 123.68])
    if pixels.shape[-1] == 1:
        luma = np.array([0.299, 0.587, 0.114])
        mean, deviation, caffe = mean @ luma, deviation @ luma, caffe @ luma[::-1]
    match scheme:
        case "unit":
            x /= 255
        case "symmetric":
            x = x / 127.5 - 1
        case "imagenet":
            x = (x / 255 - mean) / deviation
        case "caffe":
            x = x[..., ::-1] - caffe
        case "standardize":
            x = (x - 120) / 60
    return x


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_pixels_are_normalized_by_the_scheme(scheme: str, channels: int) -> None:
    pixels = random_images(2, 9, channels)
    pixels[0, 0, :2] = [[0], [255]]
    np.testing.assert_allclose(
        normalize_with_keras(pixels, scheme), normalize_with_numpy(pixels, scheme), atol=2e-5, rtol=1e-5
    )


@pytest.mark.parametrize(("scheme", "mode"), [("caffe", "caffe"), ("imagenet", "torch"), ("symmetric", "tf")])
def test_pixels_are_scaled_as_keras_does(scheme: str, mode: str) -> None:
    pixels = random_images(2, 9)
    theirs = backend.keras().applications.imagenet_utils.preprocess_input(pixels.astype(np.float32), mode=mode)
    np.testing.assert_allclose(normalize_with_keras(pixels, scheme), theirs, atol=2e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_setting_overrides_the_models_own_scheme(scheme: str) -> None:
    built_network = build_model(make_plan("cifar10-simple", normalize=scheme))
    pixels = random_images(2, 8)
    model = backend.keras().Model(built_network.model.input, built_network.model.get_layer("normalize").output)
    np.testing.assert_allclose(np.asarray(model(pixels)), normalize_with_numpy(pixels, scheme), atol=2e-5, rtol=1e-5)


def test_pixels_all_alike_do_not_divide_by_zero() -> None:
    inputs = backend.keras().Input((2, 2, 1), dtype="uint8")
    model = backend.keras().Model(inputs, normalize_pixels(inputs, "standardize", (7.0, 0.0)))
    assert np.asarray(model(np.full((1, 2, 2, 1), 7, np.uint8))).max() == pytest.approx(0, abs=1e-3)


# Errors


@pytest.mark.parametrize("name", NAMES)
def test_too_small_images_are_rejected(name: str) -> None:
    smallest = ENTRIES[name].min_input_size
    spec = dataclasses.replace(make_plan(name), height=smallest - 1, width=300)
    with pytest.raises(UsageError) as caught:
        build_model(spec)
    assert str(caught.value) == (
        f"{name} needs images of at least {smallest}x{smallest} pixels, got {smallest - 1}x300: "
        f"set input.height={smallest} or more."
    )


def test_sigmoid_is_for_two_classes() -> None:
    with pytest.raises(UsageError, match=r"model\.head=sigmoid needs exactly two classes, got 3"):
        build_model(make_plan("cifar10-simple", classes=3, head="sigmoid"))


@pytest.mark.parametrize("name", [n for n in NAMES if ENTRIES[n].groups is None])
def test_groups_only_where_there_are_some(name: str) -> None:
    with pytest.raises(UsageError, match=rf"{name} has no groups: leave model\.groups unset\."):
        build_model(make_plan(name, groups=1))


@pytest.mark.parametrize("name", [n for n in NAMES if ENTRIES[n].alpha is None])
def test_width_multiplier_only_where_there_is_one(name: str) -> None:
    with pytest.raises(UsageError, match=rf"{name} has no width multiplier: leave model\.alpha unset\."):
        build_model(make_plan(name, alpha=0.5))


def test_unknown_model_suggests_the_closest() -> None:
    spec = make_plan("vgg16")
    unknown_spec = ModelSpec(dataclasses.replace(spec.config, name="vgg-16"), 32, 32, 3, 2)
    with pytest.raises(UsageError, match=r"There is no model 'vgg-16'\. Did you mean 'vgg16'\?"):
        build_model(unknown_spec)


def test_standardize_needs_the_pixel_statistics() -> None:
    with pytest.raises(ModelError, match="needs the mean and standard deviation of the training pixels"):
        build_model(dataclasses.replace(make_plan("fashion-cnn"), pixel_stats=None))
