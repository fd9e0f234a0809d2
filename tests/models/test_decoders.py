"""Decoders: masks of the size of the image for any backbone that halves its maps, and their ONNX files."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from sightline import backend
from sightline.config import ModelConfig
from sightline.errors import UsageError
from sightline.export.keras_to_onnx import convert_model
from sightline.inference.runtimes.onnx_sessions import create_session
from sightline.models.build import ModelSpec, build_model, build_shapes_only, choose_decoder
from sightline.models.decoders import apply_decoder, find_skips, make_bilinear_kernel
from sightline.models.describe import describe_model
from sightline.models.entry import Decoder
from sightline.models.head import DENSE_LAYER, OUTPUTS


def spec(name: str, decoder: Decoder, size: tuple[int, int] = (32, 48)) -> ModelSpec:
    return ModelSpec(ModelConfig(name), *size, 3, 4, pixel_stats=(127.0, 60.0), decoder=decoder)


@pytest.mark.slow_with("efficientnet-lite0-bilinear-size4")
@pytest.mark.parametrize(
    ("name", "decoder", "size"),
    [
        ("fcn", "transposed", (37, 50)),
        ("fcn", "bilinear", (37, 50)),
        ("fcn", "fcn8", (37, 50)),
        ("fcn", "fcn32", (32, 32)),
        ("efficientnet-lite0", "bilinear", (45, 60)),
        ("vgg16", "fcn32", (32, 64)),
        pytest.param("vgg16", "fcn16", (32, 64), marks=pytest.mark.slow),
        pytest.param("vgg16", "fcn8", (64, 32), marks=pytest.mark.backends),
    ],
)
def test_masks_have_the_size_of_the_image_and_the_file_agrees(
    name: str, decoder: Decoder, size: tuple[int, int]
) -> None:
    model = build_model(spec(name, decoder, size)).model
    pixels = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    outputs = {key: np.asarray(value) for key, value in model.predict_on_batch(pixels).items()}
    assert outputs["probabilities"].shape == outputs["logits"].shape == (2, *size, 4)
    assert outputs["features"].ndim == 2
    np.testing.assert_allclose(outputs["probabilities"].sum(-1), 1, atol=1e-5)
    stored = create_session(convert_model(model)).run(list(OUTPUTS), {"pixels": pixels})
    for key, value in zip(OUTPUTS, stored, strict=True):
        np.testing.assert_allclose(value, outputs[key], atol=1e-4)


def test_skips_are_the_last_maps_of_each_size() -> None:
    model = build_model(spec("efficientnet-lite0", "bilinear", (64, 96))).model
    skips = find_skips(model.input, model.get_layer("top_relu").output, pooled=False)
    assert [skip.shape[1:3] for skip in skips] == [(4, 6), (8, 12), (16, 24), (32, 48), (64, 96)]


@pytest.mark.parametrize("name", ["mobilenetv2", "mobilenetv3-small"])
def test_padded_maps_and_those_of_squeeze_and_excitation_are_not_skips(name: str) -> None:
    model = build_model(spec(name, "bilinear", (45, 64))).model
    assert model.output["logits"].shape[1:] == (45, 64, 4)


def test_maps_that_do_not_halve_are_refused() -> None:
    with pytest.raises(UsageError, match="shrink from 16x16 to 14x14, which a decoder cannot undo"):
        build_model(spec("cifar10-deep", "bilinear", (32, 32)))
    with pytest.raises(UsageError, match="have no fixed size"):
        build_model(spec("convnext-tiny", "bilinear"))
    with pytest.raises(UsageError, match="multiples of 32"):
        build_model(spec("vgg16", "fcn32", (40, 32)))


@pytest.mark.parametrize("decoder", get_args(Decoder))
def test_maps_as_large_as_the_image_need_no_decoder(decoder: Decoder) -> None:
    keras = backend.keras()
    pixels = keras.Input((20, 30, 3))
    maps = keras.layers.Conv2D(8, 3, padding="same")(pixels)
    scores = apply_decoder(decoder, pixels, maps, 4)
    assert scores.shape == (None, 20, 30, 4)
    assert [layer.name for layer in keras.Model(pixels, scores).layers[2:]] == [DENSE_LAYER]


def test_the_decoder_is_that_of_the_network_unless_one_is_set() -> None:
    assert choose_decoder(ModelConfig("fcn"), is_for_masks=True) == "transposed"
    assert choose_decoder(ModelConfig("vgg16"), is_for_masks=True) == "bilinear"
    assert choose_decoder(ModelConfig("vgg16", decoder="fcn16"), is_for_masks=True) == "fcn16"
    assert choose_decoder(ModelConfig("fcn"), is_for_masks=False) is None


FCN = {  # of Long et al.: the maps whose scores are added, and the strides of the transposed convolutions
    "fcn32": (["block5_pool"], [32]),
    "fcn16": (["block5_pool", "block4_pool"], [2, 16]),
    "fcn8": (["block5_pool", "block4_pool", "block3_pool"], [2, 2, 8]),
}


@pytest.mark.parametrize("decoder", FCN)
def test_fcn_on_vgg16_adds_the_scores_of_the_poolings_of_the_paper(decoder: Decoder) -> None:
    model = build_shapes_only(spec("vgg16", decoder, (64, 96))).model
    maps, strides = FCN[decoder]
    for number, name in enumerate(maps, 1):
        score = model.get_layer(f"score{number}")
        assert score.kernel_size == (1, 1)
        assert score.input is model.get_layer(name).output
    assert [layer.name for layer in model.layers if layer.name.startswith("score") and layer.name[5:].isdigit()] == [
        f"score{number}" for number in range(1, len(maps) + 1)
    ]
    enlarging = [layer for layer in describe_model(model, "vgg16").layers if layer.kind == "transposed convolution"]
    size, expected = 64 // 32, []
    for stride in strides:  # of 2s x 2s, which leave out s / 2 at each end: o = (i - 1)s - 2p + k
        expected.append(f"rows ({size} - 1)·{stride} - 2·{stride // 2} + {2 * stride} = {size * stride}")
        size *= stride
    assert size == 64, "the mask is as large as the image"
    assert [layer.output_formula.partition("; ")[0] for layer in enlarging] == expected
    assert [layer.parameters for layer in enlarging] == [(2 * stride) ** 2 * 4 * 4 for stride in strides]
    assert model.output["logits"].shape == (None, 64, 96, 4)


@pytest.mark.parametrize("decoder", FCN)
def test_fcn_on_vgg16_starts_as_bilinear_upsampling_of_the_coarsest_scores(decoder: Decoder) -> None:
    import keras

    model = build_model(spec("vgg16", decoder, (64, 96))).model
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2DTranspose)]
    maps = np.random.default_rng(0).random((1, 5, 4, 4), np.float32)
    for layer in layers:
        (factor, _), enlarged = layer.strides, np.asarray(layer(maps))[0]
        inner = slice(factor, -factor)
        for k in range(4):
            image = Image.fromarray(maps[0, :, :, k]).resize((4 * factor, 5 * factor), Image.Resampling.BILINEAR)
            np.testing.assert_allclose(enlarged[inner, inner, k], np.asarray(image)[inner, inner], atol=1e-5)
    pixels = np.random.default_rng(1).integers(0, 256, (1, 64, 96, 3), np.uint8)
    scores, logits = keras.Model(model.input, [model.get_layer("score1").output, model.output["logits"]])(pixels)
    for layer in layers:
        scores = layer(scores)
    np.testing.assert_allclose(np.asarray(logits), np.asarray(scores), atol=1e-5)  # the other scores start at zero


@pytest.mark.parametrize("initializer", ["gaussian", "he", "identity"])
def test_fcn_starts_as_bilinear_upsampling_whatever_initializes_the_backbone(initializer: Any) -> None:
    default, other = (
        build_model(
            ModelSpec(ModelConfig("fcn", initializer=name), 32, 48, 3, 4, pixel_stats=(127.0, 60.0), decoder="fcn8")
        ).model
        for name in ("auto", initializer)
    )
    for name in ("score2", "score2_up", "score3", "score3_up", DENSE_LAYER):
        for before, after in zip(default.get_layer(name).weights, other.get_layer(name).weights, strict=True):
            np.testing.assert_array_equal(np.asarray(after), np.asarray(before))
    kernels = [np.asarray(model.get_layer("score1").kernel) for model in (default, other)]
    assert not np.array_equal(kernels[0], kernels[1]), "these scores start as all other layers"


@pytest.mark.parametrize(
    "decoder",
    [
        pytest.param("fcn32", marks=pytest.mark.slow),
        pytest.param("fcn16", marks=pytest.mark.slow),
        pytest.param("fcn8", marks=pytest.mark.backends),
    ],
)
def test_a_step_changes_every_score_and_every_transposed_convolution(decoder: Decoder) -> None:
    import keras

    model = build_model(spec("vgg16", decoder, (32, 32))).model
    trained = keras.Model(model.input, model.output["logits"])
    trained.compile(keras.optimizers.SGD(1e-4), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(0)
    pixels, masks = rng.integers(0, 256, (2, 32, 32, 3), np.uint8), rng.integers(0, 4, (2, 32, 32))
    before = {weight.path: np.asarray(weight) for weight in model.weights}
    first, second = (float(trained.train_on_batch(pixels, masks)) for _ in range(2))
    assert second < first
    for weight in model.weights:
        assert np.isfinite(np.asarray(weight)).all()
        assert not np.array_equal(np.asarray(weight), before[weight.path]), weight.path
    assert sum(path.startswith(("score", DENSE_LAYER)) for path in before) == 3 * len(FCN[decoder][0])


@pytest.mark.parametrize("factor", [2, 4])
def test_transposed_convolutions_start_as_bilinear_interpolation(factor: int) -> None:
    import keras

    rng = np.random.default_rng(0)
    maps = rng.random((1, 6, 5, 2), np.float32)
    layer = keras.layers.Conv2DTranspose(
        2, 2 * factor, strides=factor, padding="same", use_bias=False, kernel_initializer=make_bilinear_kernel
    )
    enlarged = np.asarray(layer(maps))[0]
    for k in range(2):
        image = Image.fromarray(maps[0, :, :, k]).resize((5 * factor, 6 * factor), Image.Resampling.BILINEAR)
        inner = slice(factor, -factor)
        np.testing.assert_allclose(enlarged[inner, inner, k], np.asarray(image)[inner, inner], atol=1e-5)
