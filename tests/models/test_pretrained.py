"""Pretrained weights give the outputs of `keras.applications`, or the error explains what to do."""

from __future__ import annotations

import zipfile
from io import BufferedReader
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from networks import NAMES, compute_outputs, make_plan, random_images
from sightline import backend
from sightline._io import open_regular
from sightline._keras.loading import explain_load_error
from sightline.compress import shrink_head
from sightline.errors import ModelError, UsageError
from sightline.models import keras_h5, pretrained
from sightline.models.build import Network, build_model
from sightline.models.describe import weights_sha256
from sightline.models.entry import Decoder, PackagedWeights
from sightline.models.registry import ENTRIES
from sightline.preprocessing import PreprocessingSpec

VGG16, MOBILENETV2, FASHION = ENTRIES["vgg16"], ENTRIES["mobilenetv2"], ENTRIES["fashion-cnn"]


def write_official(model: Any, path: Path) -> None:
    """Write weights in the format that `keras.applications` publishes: that of Keras 1, layer by layer, by name."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{v.name}:0" for v in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, variable in zip(names, layer.weights, strict=True):
                group[name] = backend.keras().ops.convert_to_numpy(variable)


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """`keras.applications.VGG16` with random weights, and the file that holds them."""
    keras = backend.keras()
    keras.utils.set_random_seed(1)
    model = keras.applications.VGG16(weights=None, include_top=False, input_shape=(32, 32, 3))
    for variable in model.weights:  # nonzero biases, to check that they are loaded too
        if variable.path.endswith("bias"):
            variable.assign(keras.random.uniform(variable.shape, -1, 1))
    path = tmp_path_factory.mktemp("weights") / "vgg16_notop.h5"
    write_official(model, path)
    return model, path


@pytest.fixture(scope="module")
def loaded(vgg16: tuple[Any, Path]) -> Network:
    return build_model(make_plan("vgg16", options={"weights": vgg16[1]}))


def build_feature_model(network: Network) -> Any:
    """Return the model from pixels to the feature maps of the backbone."""
    model = network.model
    return backend.keras().Model(model.input, model.get_layer(network.backbone[-1]).output)


# Loading


def test_vgg16_matches_keras(vgg16: tuple[Any, Path], loaded: Network) -> None:
    pixels = random_images(3, 32)
    prepared = backend.keras().applications.vgg16.preprocess_input(pixels.astype(np.float32))
    theirs = np.asarray(vgg16[0](prepared, training=False))
    ours = np.asarray(build_feature_model(loaded)(pixels, training=False))
    assert ours.std() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    assert loaded.pretrained


def test_grayscale_image_equals_its_rgb_copy(vgg16: tuple[Any, Path], loaded: Network) -> None:
    gray_network = build_model(make_plan("vgg16", channels=1, options={"weights": vgg16[1]}))
    pixels = random_images(3, 32, 1)
    gray_features = np.asarray(build_feature_model(gray_network)(pixels, training=False))
    rgb_features = np.asarray(build_feature_model(loaded)(np.repeat(pixels, 3, axis=-1), training=False))
    np.testing.assert_allclose(gray_features, rgb_features, atol=1e-5 * np.abs(rgb_features).max())
    assert "gray_to_color" not in gray_network.backbone


def test_a_network_for_grayscale_images_starts_from_one_of_either_kind(loaded: Network, tmp_path: Path) -> None:
    own, pixels = build_model(make_plan("vgg16", channels=1, seed=3)), random_images(3, 32, 1)
    of_color = tmp_path / "color.keras"
    loaded.model.save(of_color)
    converting = build_model(make_plan("vgg16", channels=1, options={"weights": of_color}))
    for source in (own, converting):
        source.model.save(tmp_path / "gray.keras")
        network = build_model(make_plan("vgg16", channels=1, options={"weights": tmp_path / "gray.keras"}))
        features, expected = (np.asarray(build_feature_model(one)(pixels, training=False)) for one in (network, source))
        np.testing.assert_array_equal(features, expected)


def test_a_gray_network_gets_a_smaller_head(vgg16: tuple[Any, Path]) -> None:
    """`compress` builds it without the weights file: the backbone still takes three channels."""
    old = build_model(make_plan("vgg16", channels=1, options={"weights": vgg16[1]}))
    config = shrink_head.list_smaller_heads(make_plan("vgg16").config)[0]
    new, pixels = shrink_head.rebuild_with_head(old.model, config, seed=1), random_images(3, 32, 1)
    expected, features = (np.asarray(build_feature_model(one)(pixels, training=False)) for one in (old, new))
    np.testing.assert_allclose(features, expected, atol=1e-5 * np.abs(expected).max())
    own = build_model(make_plan("fashion-cnn", channels=1))  # trained from random weights, on gray images
    config = shrink_head.list_smaller_heads(make_plan("fashion-cnn").config)[0]
    assert "gray_to_color" not in [
        layer.name for layer in shrink_head.rebuild_with_head(own.model, config, 1).model.layers
    ]


def test_head_is_random_and_by_seed_whatever_the_backbone_starts_from(vgg16: tuple[Any, Path], loaded: Network) -> None:
    again = build_model(make_plan("vgg16", options={"weights": vgg16[1]}))
    assert weights_sha256(again.model) == weights_sha256(loaded.model)
    other = build_model(make_plan("vgg16", seed=1, options={"weights": vgg16[1]}))
    one, two = (np.asarray(n.model.get_layer("predictions").kernel) for n in (loaded, other))
    assert not np.array_equal(one, two)


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_other_files_of_keras_are_read_too(suffix: str, tmp_path: Path) -> None:
    keras = backend.keras()
    source = build_model(make_plan("fashion-cnn", seed=3))
    backbone = keras.Model(
        source.model.get_layer("normalize").output, source.model.get_layer(source.backbone[-1]).output
    )
    path = tmp_path / f"backbone{suffix}"
    (backbone.save if suffix == ".keras" else backbone.save_weights)(path)
    network = build_model(make_plan("fashion-cnn", options={"weights": path}))
    pixels = random_images(2, 8)
    np.testing.assert_array_equal(
        np.asarray(build_feature_model(network)(pixels)), np.asarray(build_feature_model(source)(pixels))
    )
    assert not np.array_equal(
        compute_outputs(network.model, pixels)["logits"], compute_outputs(source.model, pixels)["logits"]
    )


def test_mobilenetv2_with_imagenet_weights_matches_keras(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(shared / "keras"))
    path = pretrained.find_weights(MOBILENETV2, "auto", 0.35, 224, 224)
    if path is None:
        pytest.skip(f"no MobileNetV2 weights below {shared / 'keras'}")
    applications = backend.keras().applications
    theirs = applications.MobileNetV2(weights=str(path), alpha=0.35, include_top=False, pooling="avg")
    smooth = np.kron(random_images(3, 7), np.ones((1, 32, 32, 1))).astype(np.uint8)
    prepared = applications.mobilenet_v2.preprocess_input(smooth.astype(np.float32))
    network = build_model(make_plan("mobilenetv2", side=224, options={"weights": path}))
    actual = compute_outputs(network.model, smooth)["features"]
    np.testing.assert_allclose(actual, np.asarray(theirs(prepared, training=False)), atol=1e-5)
    assert actual.std() > 0.1


APPLICATIONS = {
    "vgg19": ("VGG19", "vgg19"),
    "resnet50": ("ResNet50", "resnet"),
    "xception": ("Xception", "xception"),
    "inceptionv3": ("InceptionV3", "inception_v3"),
    "densenet121": ("DenseNet121", "densenet"),
    "mobilenet": ("MobileNet", "mobilenet"),
    "mobilenetv3-small": ("MobileNetV3Small", "mobilenet_v3"),
    "mobilenetv3-large": ("MobileNetV3Large", "mobilenet_v3"),
    "efficientnetb0": ("EfficientNetB0", "efficientnet"),
    "efficientnetv2b0": ("EfficientNetV2B0", "efficientnet_v2"),
    "convnext-tiny": ("ConvNeXtTiny", "convnext"),
    "nasnetmobile": ("NASNetMobile", "nasnet"),
}


def randomize_weights(model: Any) -> None:
    """Give every weight a distinct value, so that a swap would be noticed, while activations stay large."""
    keras, rng = backend.keras(), np.random.default_rng(0)
    for variable in model.weights:
        name, shape = variable.path.rsplit("/", 1)[-1], variable.shape
        if name in {"bias", "beta", "moving_mean"}:
            variable.assign(rng.normal(0, 0.1, shape))
        elif name in {"gamma", "moving_variance"} and "layer_scale" not in variable.path:
            variable.assign(rng.uniform(0.8, 1.2, shape))
        elif len(shape) == 1:
            variable.assign(rng.uniform(0.1, 0.3, shape))
        elif len(shape) > 1:
            variable.assign(keras.initializers.HeNormal(seed=int(rng.integers(1 << 30)))(shape))


@pytest.mark.parametrize(
    "name", [n if n == "mobilenet" else pytest.param(n, marks=pytest.mark.slow) for n in APPLICATIONS]
)
def test_published_weights_match_keras(name: str, tmp_path: Path) -> None:
    keras = backend.keras()
    function, module = APPLICATIONS[name]
    side = ENTRIES[name].min_input_size
    theirs = getattr(keras.applications, function)(weights=None, include_top=False, input_shape=(side, side, 3))
    randomize_weights(theirs)
    norm = next(
        (layer for layer in theirs.layers if isinstance(layer, keras.layers.Normalization) and layer.weights), None
    )
    tail = theirs
    pixels = random_images(2, side)
    prepared = getattr(keras.applications, module).preprocess_input(pixels.astype(np.float32))
    if norm is not None:  # EfficientNetB0's file has the deviation in place of the variance; Keras divides once more
        std = np.array([0.229, 0.224, 0.225])
        norm.adapt_mean.assign([0.485, 0.456, 0.406])
        norm.adapt_variance.assign(std)
        norm.finalize_state()
        prepared = norm(prepared / 255) / np.sqrt(std)
        tail = keras.Model(norm.output, theirs.output)
    path = tmp_path / "notop.h5"
    write_official(theirs, path)
    expected = np.asarray(tail(prepared, training=False))
    network = build_model(make_plan(name, options={"weights": path}, alpha=ENTRIES[name].alpha))
    actual = np.asarray(build_feature_model(network)(pixels, training=False))
    assert expected.std() > 1e-3
    np.testing.assert_allclose(actual, expected, atol=2e-5 * np.abs(expected).max())
    assert network.pretrained
    assert not network.pretrained_head


# With the top


@pytest.fixture(scope="module")
def with_top(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """`keras.applications.VGG16` with 1000 classes at 32x32, and the file that holds it."""
    keras = backend.keras()
    model = keras.applications.VGG16(weights=None, input_shape=(32, 32, 3), classes=1000)
    randomize_weights(model)
    path = tmp_path_factory.mktemp("top") / "vgg16.h5"
    write_official(model, path)
    return model, path


@pytest.mark.slow
def test_top_is_read_where_it_fits(tmp_path: Path) -> None:
    """At 64 pixels, the order of the flattened 2x2 feature maps counts too."""
    keras = backend.keras()
    theirs = keras.applications.VGG16(weights=None, input_shape=(64, 64, 3))
    randomize_weights(theirs)
    path = tmp_path / "vgg16_weights_tf_dim_ordering_tf_kernels.h5"
    write_official(theirs, path)
    network = build_model(make_plan("vgg16", side=64, classes=1000, hidden_units=None, options={"weights": path}))
    assert network.pretrained
    assert network.pretrained_head
    pixels = random_images(2, 64)
    prepared = keras.applications.vgg16.preprocess_input(pixels.astype(np.float32))
    feature_model = keras.Model(theirs.input, [theirs.output, theirs.get_layer("fc2").output])
    expected, features = (np.asarray(value) for value in feature_model(prepared, training=False))
    outputs = compute_outputs(network.model, pixels)
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-5)
    assert expected.max() > 0.01, "classes must not all be equally likely"
    np.testing.assert_allclose(outputs["features"], features, atol=1e-5 * features.max())


@pytest.mark.parametrize(
    "settings",
    [{"classes": 2, "hidden_units": (4096, 4096)}, {"hidden_units": (16,)}, {"side": 64, "hidden_units": (8,)}],
    ids=str,
)
def test_top_is_left_out_where_it_does_not_fit(settings: dict[str, Any], with_top: tuple[Any, Path]) -> None:
    network = build_model(make_plan("vgg16", **({"classes": 1000} | settings), options={"weights": with_top[1]}))
    assert network.pretrained
    assert not network.pretrained_head
    for name in ("block1_conv1", "block5_conv3"):
        ours, theirs = network.model.get_layer(name), with_top[0].get_layer(name)
        np.testing.assert_array_equal(np.asarray(ours.kernel), np.asarray(theirs.kernel))
        np.testing.assert_array_equal(np.asarray(ours.bias), np.asarray(theirs.bias))
    assert not np.asarray(network.model.get_layer("predictions").bias).any()


def test_weights_from_a_file_are_not_reinitialized(vgg16: tuple[Any, Path]) -> None:
    network = build_model(make_plan("vgg16", initializer="gaussian", options={"weights": vgg16[1]}))
    ours, theirs = network.model.get_layer("block3_conv1"), vgg16[0].get_layer("block3_conv1")
    np.testing.assert_array_equal(np.asarray(ours.kernel), np.asarray(theirs.kernel))
    assert np.asarray(network.model.get_layer("fc1").kernel).std() == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("place", ["block1_conv1/block1_conv1/kernel:0", "block1_conv1", "model_weights"])
def test_array_stored_in_another_file_is_rejected(place: str, vgg16: tuple[Any, Path], tmp_path: Path) -> None:
    path = tmp_path / "linked.h5"
    if place == "model_weights":
        with h5py.File(path, "w") as file:
            file[place] = h5py.ExternalLink(str(vgg16[1]), "/")
    else:
        path.write_bytes(vgg16[1].read_bytes())
        with h5py.File(path, "a") as file:
            del file[place]
            file[place] = h5py.ExternalLink(str(vgg16[1]), place)
    with pytest.raises(ModelError, match="refers to data elsewhere"):
        build_model(make_plan("vgg16", options={"weights": path}))


@pytest.mark.parametrize(
    "options", [{"compression": "gzip"}, {}, {"shape": (1,), "maxshape": (None,)}], ids=["packed", "unwritten", "chunk"]
)
@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_arrays_larger_than_their_file_are_refused_unread(
    options: dict[str, Any], suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"large{suffix}"
    with h5py.File(path, "w") as file:
        group = file.create_group("layer")
        dtype, chunks = np.float32, (1 << 20,)
        group.create_dataset("w", **{"shape": (1 << 30,), "dtype": dtype, "chunks": chunks, **options})
        if suffix == ".h5":
            file.attrs["layer_names"], group.attrs["weight_names"] = [b"layer"], [b"w"]
    monkeypatch.setattr(h5py.Dataset, "__array__", lambda *_: pytest.fail("read"))
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda *_: pytest.fail("read"))
    with pytest.raises(ModelError, match=r"its arrays take [\d,]+ bytes, more than 4 times the file's"):
        build_model(make_plan("fashion-cnn", options={"weights": path}))


def test_the_weights_that_were_checked_are_read_whatever_has_their_name_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notop.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"layer"]
        group = file.create_group("layer")
        group.attrs["weight_names"] = [b"w"]
        group["w"] = np.arange(5, dtype=np.float32)

    def open_and_replace(name: Path) -> BufferedReader:
        file = open_regular(name)
        (tmp_path / "other").write_bytes(b"another file")
        (tmp_path / "other").replace(name)
        return file

    monkeypatch.setattr(keras_h5, "open_regular", open_and_replace)
    ((name, (array,)),) = keras_h5.read_h5_layers(path) or []
    assert (name, array.tolist()) == ("layer", [0, 1, 2, 3, 4])
    assert path.read_bytes() == b"another file"


@pytest.mark.parametrize("block", [0, 512, 2048])
def test_an_hdf5_file_is_one_also_behind_a_block_of_its_user(block: int, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", userblock_size=block) as file:
        file["other"] = h5py.ExternalLink("b.h5", "/")
    assert h5py.is_hdf5(path)
    with pytest.raises(ValueError, match="refers to data elsewhere"):
        keras_h5.read_h5_layers(path)


def test_an_array_of_many_layers_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "again.h5", "w") as file:
        file.attrs["layer_names"] = [b"layer"] * 1000
        group = file.create_group("layer")
        group.attrs["weight_names"] = [b"w"]
        group["w"] = np.zeros(1000, np.float32)
    with pytest.raises(ModelError, match="the layer 'layer' has arrays that another one has"):
        build_model(make_plan("fashion-cnn", options={"weights": tmp_path / "again.h5"}))


def test_a_keras_file_that_expands_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b" " * (32 << 20))
    monkeypatch.setattr(pretrained, "_build_submodel", lambda _: backend.keras().Sequential([]))
    monkeypatch.setattr(backend.keras().Sequential, "load_weights", lambda *_: pytest.fail("read by Keras"))
    with pytest.raises(ModelError, match=r"config\.json decompresses from"):
        build_model(make_plan("fashion-cnn", options={"weights": tmp_path / "bomb.keras"}))


# Real weights


@pytest.mark.slow
def test_squeezenet_features_separate_cats_from_dogs(shared: Path) -> None:
    path = shared / "weights" / "squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5"
    folder = shared / "data" / "cats_vs_dogs"
    if not (path.is_file() and folder.is_dir()):
        pytest.skip(f"no SqueezeNet weights at {path} or no images in {folder}")
    model = build_model(make_plan("squeezenet", side=227, options={"weights": path})).model
    rows, labels = [], []
    for label, class_name in enumerate(("cat", "dog")):
        paths = sorted(p for p in folder.rglob("*.jpg") if p.parent.name.lower().startswith(class_name))[:100]
        assert len(paths) == 100
        for start in range(0, 100, 25):
            pixels = np.stack(
                [PreprocessingSpec(227, 227, 3).decode(p.read_bytes()) for p in paths[start : start + 25]]
            )
            rows.append(compute_outputs(model, pixels)["features"])
            labels += [label] * 25
    x, y = np.concatenate(rows), np.array(labels)
    train = np.arange(200) % 2 == 0
    scaled = (x - x[train].mean(0)) / (x[train].std(0) + 1e-3)
    design = np.c_[scaled, np.ones(200)]
    kernel = design[train] @ design[train].T + 300 * np.eye(100)  # ridge regression in the dual
    weights_ = design[train].T @ np.linalg.solve(kernel, 2.0 * y[train] - 1)
    assert ((design[~train] @ weights_ > 0) == y[~train]).mean() > 0.85


def test_file_of_another_network_does_not_fit(vgg16: tuple[Any, Path]) -> None:
    with pytest.raises(ModelError, match=r"do not fit fashion-cnn: .*\. Expected the layers of fashion-cnn without"):
        build_model(make_plan("fashion-cnn", options={"weights": vgg16[1]}))


def test_a_file_of_a_grayscale_network_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "gray.keras"
    build_model(make_plan("cifar10-deep", channels=1)).model.save(path)
    with pytest.raises(ModelError) as caught:
        build_model(make_plan("cifar10-deep", options={"weights": path}))
    assert str(caught.value) == (
        f"The weights in {path} do not fit cifar10-deep: the weight conv1/kernel has shape (3, 3, 1, 32), expected "
        "(3, 3, 3, 32). Expected the layers of cifar10-deep without the top."
    )


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_a_deeper_network_is_refused_and_one_with_a_top_and_an_optimizer_is_not(suffix: str, tmp_path: Path) -> None:
    """Keras would silently read only the first layers."""
    keras = backend.keras()
    layers = keras.layers
    network = build_model(make_plan("fashion-cnn", seed=3))
    whole, features = network.model, network.model.get_layer(network.backbone[-1]).output
    classifier = keras.Model(whole.input, whole.output["probabilities"])
    classifier.compile("adam", "sparse_categorical_crossentropy")
    classifier.optimizer.build(classifier.trainable_variables)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, padding="same")(features))
    for model, fits in ((classifier, True), (keras.Model(whole.input, layers.Dense(5)(x)), False)):
        path = tmp_path / f"{fits}{suffix}"
        (model.save if suffix == ".keras" else model.save_weights)(path)
        plan = make_plan("fashion-cnn", options={"weights": path})
        if fits:
            build_model(plan)
        else:
            with pytest.raises(ModelError, match=r"the file has \d convolutions, the network \d\. Expected the layers"):
                build_model(plan)


@pytest.mark.parametrize("decoder", ["bilinear", "transposed", "fcn8"])
def test_the_backbone_of_a_network_for_masks_is_read_without_its_decoder(decoder: Decoder, tmp_path: Path) -> None:
    masks = build_model(make_plan("fashion-cnn", seed=3, side=32, options={"decoder": decoder}))
    masks.model.save(tmp_path / "model.keras")
    network = build_model(make_plan("fashion-cnn", side=32, options={"weights": tmp_path / "model.keras"}))
    pixels = random_images(2, 32)
    features, expected = (np.asarray(build_feature_model(one)(pixels)) for one in (network, masks))
    np.testing.assert_array_equal(features, expected)


def test_of_many_layers_that_do_not_fit_the_reason_for_one_is_named() -> None:
    """The message is that of Keras 3.15 for a .keras file of another network."""
    error = ValueError(
        "A total of 104 objects could not be loaded. Example error message for object <Conv2D name=Conv1, built=True>:"
        "\n\nLayer 'Conv1' expected 1 variables, but received 2 variables during loading. Expected: ['kernel']\n\n"
        "List of objects that could not be loaded:\n[<Conv2D name=Conv1, built=True>]"
    )
    assert explain_load_error(error) == "Layer 'Conv1' expected 1 variables, but received 2 variables"


@pytest.mark.parametrize("name", ["noise.h5", "noise.weights.h5", "noise.keras", "noise.bin"])
def test_invalid_file_is_reported_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"no weights at all")
    with pytest.raises(ModelError) as caught:
        build_model(make_plan("fashion-cnn", options={"weights": path}))
    message = str(caught.value)
    assert message.startswith(f"The weights in {path} do not fit fashion-cnn: ")
    assert message.endswith(". Expected the layers of fashion-cnn without the top.")
    assert "\n" not in message


# Finding files


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ``KERAS_HOME``."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    return tmp_path


def create_file(home: Path, name: str) -> Path:
    path = home / "models" / name
    path.touch()
    return path


def test_weights_are_found_by_width_and_size(home: Path) -> None:
    assert pretrained.find_cached_file(MOBILENETV2, None, 224) is None
    stem = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels"
    small = create_file(home, f"{stem}_0.35_224_no_top.h5")
    assert pretrained.find_cached_file(MOBILENETV2, 0.35, 224) == small
    assert pretrained.find_cached_file(MOBILENETV2, None, 224) is None, "unset means 1.0"
    whole = create_file(home, f"{stem}_1.0_96_no_top.h5")
    assert pretrained.find_cached_file(MOBILENETV2, None, 96) == whole
    assert pretrained.find_cached_file(MOBILENETV2, 1.0, 96) == whole
    assert pretrained.find_cached_file(MOBILENETV2, 0.35, 96) is None, "only for the size that it was trained at"
    assert pretrained.find_cached_file(MOBILENETV2, 0.35, 288) == small, "the largest, for sizes without weights"


def test_widest_cached_weights(home: Path) -> None:
    assert pretrained.find_cached_alpha(MOBILENETV2, 224) is None
    for alpha in (0.35, 0.75):
        create_file(home, f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_224_no_top.h5")
    assert pretrained.find_cached_alpha(MOBILENETV2, 224) == 0.75
    assert pretrained.find_cached_alpha(FASHION, 28) is None


def test_auto_uses_cached_weights_and_downloads_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "_download", lambda *_: pytest.fail("auto must not fetch"))
    fetched = [name for name in NAMES if not isinstance(ENTRIES[name].pretrained, PackagedWeights)]
    assert all(pretrained.find_weights(ENTRIES[name], "auto", None, 224, 224) is None for name in fetched)
    path = create_file(home, "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5")
    assert pretrained.find_weights(VGG16, "auto", None, 64, 96) == path
    assert pretrained.find_weights(VGG16, "imagenet", None, 224, 224) == path
    assert pretrained.find_weights(VGG16, "none", None, 224, 224) is None


def test_a_path_is_used_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.h5"
    path.touch()
    assert pretrained.find_weights(VGG16, str(path), None, 224, 224) == path
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert pretrained.find_weights(FASHION, "~/mine.h5", None, 28, 28) == path
    with pytest.raises(ModelError, match=r"There is no weights file imagnet: use none, .*imagenet or the path"):
        pretrained.find_weights(VGG16, "imagnet", None, 224, 224)
    with pytest.raises(ModelError, match=r"model\.weights is empty: use none, .*imagenet or the path"):
        pretrained.find_weights(VGG16, "", None, 224, 224)


def test_network_without_published_weights(home: Path) -> None:
    with pytest.raises(UsageError, match=r"fashion-cnn has no ImageNet weights: set model\.weights to none or to"):
        pretrained.find_weights(FASHION, "imagenet", None, 28, 28)


def test_width_without_published_weights_names_the_others(home: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.alpha=0\.4: choose one of 0\.35, 0\.5, 0\.75, 1\.0, 1\.3, 1\.4\."):
        pretrained.find_weights(MOBILENETV2, "imagenet", 0.4, 224, 224)


def test_without_a_network_the_message_says_what_to_put_where(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: Any, **kwargs: Any) -> str:
        raise OSError("URL fetch failure: [Errno -2] Name or service not known")

    monkeypatch.setattr(backend.keras().utils, "get_file", no_network)
    with pytest.raises(ModelError) as caught:
        pretrained.find_weights(MOBILENETV2, "imagenet", 0.5, 160, 160)
    message = str(caught.value)
    name = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.5_160_no_top.h5"
    assert "The ImageNet weights of mobilenetv2 are not cached and could not be downloaded" in message
    assert "Name or service not known" in message
    assert f"https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/{name}" in message
    assert str(home / "models" / name) in message


def test_fetched_file_lands_where_the_next_run_looks_once_it_is_complete(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(name: str, origin: str, *, cache_dir: str, cache_subdir: str) -> str:
        assert not origin.endswith(name)
        print("Downloading data")  # noqa: T201  # as Keras does
        path = Path(cache_dir, cache_subdir, name)
        path.write_bytes(b"weights")
        return str(path)

    monkeypatch.setattr(backend.keras().utils, "get_file", fetch)
    path = pretrained.find_weights(VGG16, "imagenet", None, 224, 224)
    assert path == home / "models" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    monkeypatch.setattr(backend.keras().utils, "get_file", lambda *_: pytest.fail("it is cached already"))
    assert pretrained.find_weights(VGG16, "imagenet", None, 224, 224) == path
    assert capsys.readouterr().out == ""
