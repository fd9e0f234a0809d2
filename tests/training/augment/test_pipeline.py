"""Augmentation against NumPy and SciPy: the sampled parameters, and their effect on pixels."""

from __future__ import annotations

import colorsys
import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from networks import random_images
from sightline import backend
from sightline.config import AugmentConfig, CustomAugmentConfig
from sightline.errors import UsageError
from sightline.seeding import make_generator
from sightline.training.augment import geometry, pipeline
from sightline.training.augment.augmentation import Augmentation, per_image, register_augmentation

Pixels = NDArray[np.uint8]

NO_AUGMENTATION = AugmentConfig()
COLOR_SETTINGS = ("brightness", "contrast", "saturation")
GEOMETRY_SETTINGS = ("rotation", "translation", "zoom", "shear", "crop", "vertical_flip")
SETTINGS: dict[str, Any] = {
    "horizontal_flip": True, "vertical_flip": True, "rotation": 30.0, "translation": 0.5, "zoom": 0.5, "shear": 20.0,
    "crop": 0.3, "brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.5, "erasing_probability": 1.0,
    "randaugment": 2, "mixup": 1.0, "cutmix": 1.0,
}  # fmt: skip
MODIFIERS = {  # no effect on their own
    "fill_mode", "alternating_flip", "label_mixing", "erasing_min_area", "erasing_max_area", "randaugment_magnitude",
}  # fmt: skip
UNIT = st.floats(0, 1)


def apply_augmentation(config: AugmentConfig, pixels: Pixels, params: NDArray[np.float32]) -> Pixels:
    augmented = backend.keras().ops.convert_to_numpy(pipeline.apply(config, pixels, params))
    assert augmented.dtype == np.uint8
    assert augmented.shape == pixels.shape
    return np.asarray(augmented)


def make_smooth_image(height: int, width: int, channels: int = 3) -> Pixels:
    """Return a smooth image without any symmetry: [1, H, W, C]."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(5 * x + 3 * y * y + c) + np.cos(4 * y - 2 * x * c) for c in range(channels)]
    return (127.5 + 60 * np.stack(waves, -1))[None].astype(np.uint8)


def get_params(config: AugmentConfig, params: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """Return the columns of the augmentation `name`; without them, one that is NaN."""
    columns = pipeline.get_columns(config).get(name)
    return np.full((len(params), 1), np.nan, np.float32) if columns is None else params[:, columns]


# Sampled parameters


def test_default_changes_nothing() -> None:
    assert not pipeline.is_enabled(NO_AUGMENTATION)
    params = pipeline.sample_params(NO_AUGMENTATION, 3, (8, 8), 0, 1)
    assert params.shape == (3, 0)
    pixels = random_images(3, 8)
    assert pipeline.apply(NO_AUGMENTATION, pixels, params) is pixels


@pytest.mark.parametrize(
    "field", [f.name for f in dataclasses.fields(AugmentConfig) if f.name not in {*MODIFIERS, "custom"}]
)
def test_every_setting_alone_changes_images(field: str) -> None:
    config = dataclasses.replace(NO_AUGMENTATION, **{field: SETTINGS[field]})
    assert pipeline.is_enabled(config)
    assert geometry.is_geometric(config) is (field in GEOMETRY_SETTINGS)
    pixels = np.concatenate([make_smooth_image(12, 12), make_smooth_image(12, 12)[:, ::-1]] * 4)
    out = apply_augmentation(config, pixels, pipeline.sample_params(config, 8, (12, 12), 1, 1))
    changed = (out != pixels).any((1, 2, 3))
    assert changed.any()
    assert changed.all() or field in {"horizontal_flip", "vertical_flip", "crop", "randaugment", "cutmix"}


CONFIGS = st.builds(
    AugmentConfig,
    horizontal_flip=st.booleans(),
    vertical_flip=st.booleans(),
    rotation=st.floats(0, 180),
    translation=UNIT,
    zoom=st.floats(0, 0.9),
    shear=st.floats(0, 60),
    brightness=UNIT,
    contrast=UNIT,
    saturation=UNIT,
    hue=st.floats(0, 0.5),
)


@given(CONFIGS, st.integers(0, 99), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40))
def test_params_stay_in_their_ranges(config: AugmentConfig, seed: int, epoch: int, height: int, width: int) -> None:
    params = pipeline.sample_params(config, 50, (height, width, 3), seed, epoch)
    assert params.shape == (50, pipeline.count_columns(config))
    assert params.dtype == np.float32
    assert np.isfinite(params).all()
    columns = pipeline.get_columns(config)
    expected = {"horizontal_flip": config.horizontal_flip, "affine": geometry.is_geometric(config)}
    expected |= {name: getattr(config, name) > 0 for name in (*COLOR_SETTINGS, "hue")}
    assert columns.keys() == {name for name, is_on in expected.items() if is_on}
    assert sorted(i for c in columns.values() for i in range(c.start, c.stop)) == list(range(params.shape[1]))
    values = {name: get_params(config, params, name) for name in columns}
    assert set(values.get("horizontal_flip", np.zeros(1)).ravel()) <= {0, 1}
    neutral, scale = {"contrast": 1, "saturation": 1}, {"brightness": 255}
    for name in columns.keys() & {*COLOR_SETTINGS, "hue"}:
        reach = scale.get(name, 1) * getattr(config, name)
        assert np.abs(values[name] - neutral.get(name, 0)).max() <= reach * (1 + 1e-6) + 1e-6
    if "affine" not in columns:
        return
    matrix = values["affine"].reshape(-1, 2, 3)
    area = np.linalg.det(matrix[:, :, :2].astype(np.float64))
    assert ((area < 0).any()) <= (config.vertical_flip or config.horizontal_flip)
    low, high = 1 - config.zoom, 1 + config.zoom
    shear_factor = np.cos(np.deg2rad(config.shear))
    assert np.abs(area).min() >= low * low * shear_factor - 1e-4
    assert np.abs(area).max() <= high * high + 1e-4
    center = np.array([(width - 1) / 2, (height - 1) / 2])
    displacement = np.hypot(*(matrix[:, :, :2] @ center + matrix[:, :, 2] - center).T)
    assert displacement.max() <= config.translation * np.hypot(height, width) + 1e-3


def test_alternating_flips_show_each_image_both_ways_in_two_epochs() -> None:
    config = AugmentConfig(horizontal_flip=True, alternating_flip=True)
    one, two, three = (pipeline.sample_params(config, 100, (8, 8), 5, epoch)[:, 0] for epoch in (1, 2, 3))
    np.testing.assert_array_equal(one + two, 1)
    np.testing.assert_array_equal(one, three)
    assert 20 < one.sum() < 80, "which way comes first differs by image"


def test_each_range_is_used_to_both_ends() -> None:
    config = AugmentConfig(translation=0.25, brightness=0.5, contrast=0.2, saturation=0.3, hue=0.1)
    params = pipeline.sample_params(config, 4000, (20, 40), 1, 1)
    for name, column, center, reach in [
        ("affine", 2, 0, 10), ("affine", 5, 0, 5), ("brightness", 0, 0, 127.5), ("contrast", 0, 1, 0.2),
        ("saturation", 0, 1, 0.3), ("hue", 0, 0, 0.1),
    ]:  # fmt: skip
        values = (get_params(config, params, name)[:, column] - center) / reach
        assert values.min() < -0.98
        assert values.max() > 0.98
        assert abs(values.mean()) < 0.05
    flips = pipeline.sample_params(AugmentConfig(horizontal_flip=True), 4000, (20, 40), 1, 1)
    assert flips[:, 0].mean() == pytest.approx(0.5, abs=0.03)
    vertical_flips = pipeline.sample_params(AugmentConfig(vertical_flip=True), 4000, (20, 40), 1, 1)
    assert (vertical_flips[:, 4] < 0).mean() == pytest.approx(0.5, abs=0.03)


EVERYTHING = AugmentConfig(
    horizontal_flip=True, vertical_flip=True, rotation=40, translation=0.2, zoom=0.2, shear=10, brightness=0.1,
    contrast=0.2,
    saturation=0.3, hue=0.1, crop=0.1, erasing_probability=0.5, randaugment=2,
)  # fmt: skip


def test_params_depend_only_on_seed_epoch_and_position() -> None:
    params = pipeline.sample_params(EVERYTHING, 20, (16, 16), 3, 2)
    np.testing.assert_array_equal(pipeline.sample_params(EVERYTHING, 20, (16, 16), 3, 2), params)
    np.testing.assert_array_equal(pipeline.sample_params(EVERYTHING, 7, (16, 16), 3, 2), params[:7])
    mixing = dataclasses.replace(EVERYTHING, mixup=0.4, cutmix=1.0)
    mixed_params = pipeline.sample_params(mixing, 20, (16, 16), 3, 2)
    np.testing.assert_array_equal(pipeline.sample_params(mixing, 7, (16, 16), 3, 2), mixed_params[:7])
    for other in (
        pipeline.sample_params(mixing, 20, (16, 16), 4, 2),
        pipeline.sample_params(mixing, 20, (16, 16), 3, 3),
    ):
        for name, columns in pipeline.get_columns(mixing).items():
            assert not np.array_equal(other[:, columns], mixed_params[:, columns]), name
    assert len(np.unique(params, axis=0)) == 20


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"brightness": 0.1}, "brightness"),
        ({"hue": 0.1}, "hue"),
        ({"erasing_probability": 0.5}, "erasing"),
        ({"randaugment": 2}, "randaugment"),
        ({"horizontal_flip": True}, "horizontal_flip"),
    ],
    ids=str,
)
def test_one_setting_does_not_move_another(settings: dict[str, Any], name: str) -> None:
    config = AugmentConfig(**settings)
    only = get_params(config, pipeline.sample_params(config, 20, (16, 16), 3, 2), name)
    together = get_params(EVERYTHING, pipeline.sample_params(EVERYTHING, 20, (16, 16), 3, 2), name)
    np.testing.assert_array_equal(together, only)


# Effect on pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_grayscale_and_rgb_go_through_everything(channels: int) -> None:
    full_config = dataclasses.replace(EVERYTHING, mixup=0.4, cutmix=1.0)
    pixels = random_images(8, 12, channels)
    out = apply_augmentation(full_config, pixels, pipeline.sample_params(full_config, 8, (12, 12), 0, 1))
    assert (out != pixels).any((1, 2, 3)).all()


def test_images_change_independently_of_their_batch() -> None:
    pixels = random_images(6, 16)
    params = pipeline.sample_params(EVERYTHING, 6, (16, 16), 0, 1)
    augmented = apply_augmentation(EVERYTHING, pixels, params)
    order = np.array([4, 1, 5])
    np.testing.assert_array_equal(apply_augmentation(EVERYTHING, pixels[order], params[order]), augmented[order])


@pytest.mark.parametrize("channels", [1, 3])
def test_horizontal_flip_is_exact(channels: int) -> None:
    config = AugmentConfig(horizontal_flip=True)
    pixels = random_images(8, 9, channels)
    params = pipeline.sample_params(config, 8, (9, 9), 0, 1)
    flipped = params[:, 0] == 1
    assert 0 < flipped.sum() < 8
    out = apply_augmentation(config, pixels, params)
    np.testing.assert_array_equal(out[flipped], pixels[flipped, :, ::-1])
    np.testing.assert_array_equal(out[~flipped], pixels[~flipped])


@pytest.mark.parametrize("size", [8, 9])
def test_vertical_flip_is_exact(size: int) -> None:
    config = AugmentConfig(vertical_flip=True)
    pixels = random_images(8, size)
    params = pipeline.sample_params(config, 8, (size, size), 0, 1)
    flipped = params[:, 4] < 0
    assert 0 < flipped.sum() < 8
    out = apply_augmentation(config, pixels, params)
    np.testing.assert_array_equal(out[flipped], pixels[flipped, ::-1])
    np.testing.assert_array_equal(out[~flipped], pixels[~flipped])


def keras_matrix(
    theta: float, shift: tuple[float, float], shear: float, zoom: tuple[float, float], size: tuple[int, int]
) -> NDArray[np.float64]:
    """Return the map from output to input over (x, y, 1), as Keras' ImageDataGenerator defines it; angles in degrees.

    R·Shift·Shear·Zoom about the center, `shift` in pixels, `shift` and `zoom` as (x, y), `size` as (height, width).
    """
    t, s = np.deg2rad(theta), np.deg2rad(shear)
    rotation = np.array([[np.cos(t), -np.sin(t), 0], [np.sin(t), np.cos(t), 0], [0, 0, 1]])
    translation = np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]])
    shear_matrix = np.array([[1, -np.sin(s), 0], [0, np.cos(s), 0], [0, 0, 1]])
    scale = np.diag([*zoom, 1.0])
    center = np.array([[1, 0, size[1] / 2 - 0.5], [0, 1, size[0] / 2 - 0.5], [0, 0, 1]])
    return np.asarray(center @ rotation @ translation @ shear_matrix @ scale @ np.linalg.inv(center))


def expected_matrix_and_params(
    pixels: Pixels, config: AugmentConfig, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return the matrix by Keras' definition for the numbers of the first image, and the parameters from `draw`."""
    height, width = pixels.shape[1:3]
    u = 2 * make_generator(seed, "augment", "affine", 1).random((1, 7))[0] - 1
    matrix = keras_matrix(
        config.rotation * u[0],
        (config.translation * width * u[3], config.translation * height * u[2]),
        config.shear * u[1],
        (1 + config.zoom * u[5], 1 + config.zoom * u[4]),
        (height, width),
    )
    return matrix, pipeline.sample_params(config, 1, pixels.shape[1:3], seed, 1)


TUTORIAL = AugmentConfig(rotation=40, translation=0.2, zoom=0.2, horizontal_flip=True)
"""``rotation_range=40, width_shift_range=0.2, height_shift_range=0.2, zoom_range=0.2, horizontal_flip=True``."""


@pytest.mark.parametrize("seed", range(6))
def test_images_match_the_generator_of_the_tutorial(seed: int) -> None:
    """Compare with `ImageDataGenerator` on a square image, since it mixes up the sides of others.

    Rotation, shift, zoom, then the flip; beyond the border, the nearest pixel.
    """
    backend.keras()
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    keras_generator = ImageDataGenerator(
        rotation_range=40, width_shift_range=0.2, height_shift_range=0.2, zoom_range=0.2, horizontal_flip=True,
        fill_mode="nearest",
    )  # fmt: skip
    pixels, side = make_smooth_image(32, 32), 32
    s = 2 * make_generator(seed, "augment", "affine", 1).random((1, 7))[0] - 1
    is_flipped = make_generator(seed, "augment", "horizontal_flip", 1).random(1)[0] < 0.5
    parameters = {  # Keras names them as if x were the row
        "theta": 40 * s[0], "tx": 0.2 * side * s[3], "ty": 0.2 * side * s[2], "shear": 0, "zx": 1 + 0.2 * s[5],
        "zy": 1 + 0.2 * s[4], "flip_horizontal": is_flipped,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses deprecated SciPy names
        expected = keras_generator.apply_transform(pixels[0].astype(np.float64), parameters)
    out = apply_augmentation(TUTORIAL, pixels, pipeline.sample_params(TUTORIAL, 1, (side, side), seed, 1))
    assert np.abs(out[0] - expected).max() <= 1
    assert np.abs(out[0].astype(int) - pixels[0]).mean() > 5
    if is_flipped:  # the flip comes last: first, it would give another image
        parameters["flip_horizontal"] = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flipped_first = keras_generator.apply_transform(pixels[0, :, ::-1].astype(np.float64), parameters)
        assert np.abs(out[0] - flipped_first).max() > 5


def test_params_have_the_ranges_of_the_generator_of_the_tutorial() -> None:
    backend.keras()
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    keras_generator = ImageDataGenerator(
        rotation_range=40, width_shift_range=0.2, height_shift_range=0.2, zoom_range=0.2, horizontal_flip=True
    )
    transforms = [keras_generator.get_random_transform((32, 32, 3), seed=i) for i in range(4000)]
    names = ["theta", "tx", "ty", "zx", "zy", "flip_horizontal"]
    expected = np.array([[float(d[name]) for name in names] for d in transforms])
    ours = pipeline.sample_params(TUTORIAL, 20_000, (32, 32), 0, 1)
    matrix = get_params(TUTORIAL, ours, "affine").reshape(-1, 2, 3).astype(np.float64)
    flipped = get_params(TUTORIAL, ours, "horizontal_flip")[:, 0]
    flip = 1 - 2 * flipped
    across, down = matrix[:, :, 0] * flip[:, None], matrix[:, :, 1]
    center_shift = (matrix @ [15.5, 15.5, 1] - 15.5)[..., None]  # the shift, rotated with the image
    angle = np.arctan2(across[:, 1], across[:, 0])
    back = np.stack([np.stack([np.cos(angle), np.sin(angle)], -1), np.stack([-np.sin(angle), np.cos(angle)], -1)], -2)
    shift = (back @ center_shift)[..., 0]
    actual = np.stack([np.rad2deg(angle), shift[:, 0], shift[:, 1], np.hypot(*across.T), np.hypot(*down.T), flipped], 1)
    for quantile in (0, 0.25, 0.5, 0.75, 1):
        reach = np.array([80, 12.8, 12.8, 0.4, 0.4])
        difference = (np.quantile(actual, quantile, 0) - np.quantile(expected, quantile, 0))[:5] / reach
        assert np.abs(difference).max() < 0.04
    np.testing.assert_allclose(actual[:, 5].mean(), expected[:, 5].mean(), atol=0.04)


@pytest.mark.parametrize("fraction", [0.1, 0.25])
def test_a_crop_is_a_crop_of_the_padded_image(fraction: float) -> None:
    """The reference pads and crops in NumPy (He et al., 2015: 4 black pixels around 32)."""
    for fill, mode in (("constant", "constant"), ("nearest", "edge"), ("reflect", "symmetric")):
        config = AugmentConfig(crop=fraction, fill_mode=fill)  # type: ignore[arg-type]
        pixels = np.repeat(make_smooth_image(20, 12), 60, 0)
        params = pipeline.sample_params(config, 60, (20, 12), 0, 1)
        offsets = params[:, [2, 5]].astype(int)
        pad_height, pad_width = round(20 * fraction), round(12 * fraction)
        assert set(offsets[:, 0]) == set(range(-pad_width, pad_width + 1))
        assert set(offsets[:, 1]) == set(range(-pad_height, pad_height + 1))
        padded = np.pad(pixels[0], ((pad_height, pad_height), (pad_width, pad_width), (0, 0)), mode=mode)  # type: ignore[call-overload]
        expected = [
            padded[pad_height + y : pad_height + y + 20, pad_width + x : pad_width + x + 12] for x, y in offsets
        ]
        np.testing.assert_array_equal(apply_augmentation(config, pixels, params), expected)


def transform_with_scipy(pixels: Pixels, matrix: NDArray[np.float64], mode: str) -> NDArray[np.float64]:
    swap = matrix[[1, 0, 2]][:, [1, 0, 2]]  # SciPy counts rows first
    return np.stack(
        [
            affine_transform(pixels[0, :, :, c].astype(np.float64), swap[:2, :2], swap[:2, 2], order=1, mode=mode)
            for c in range(pixels.shape[-1])
        ],
        -1,
    )[None]


MOVES = {
    "rotation": AugmentConfig(rotation=180),
    "translation": AugmentConfig(translation=0.3),
    "zoom": AugmentConfig(zoom=0.5),
    "shear": AugmentConfig(shear=40),
    "all": AugmentConfig(rotation=40, translation=0.2, zoom=0.2, shear=20),
}


@pytest.mark.parametrize("size", [(31, 31), (24, 40)], ids=str)
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("move", MOVES)
def test_geometry_is_that_of_keras_image_data_generator(move: str, seed: int, size: tuple[int, int]) -> None:
    pixels = make_smooth_image(*size)
    matrix, params = expected_matrix_and_params(pixels, MOVES[move], seed)
    np.testing.assert_allclose(get_params(MOVES[move], params, "affine")[0].reshape(2, 3), matrix[:2], atol=1e-4)
    out = apply_augmentation(MOVES[move], pixels, params)
    difference = np.abs(out - transform_with_scipy(pixels, matrix, "nearest"))
    assert difference.max() <= 1
    assert np.abs(out.astype(int) - pixels).max() > 2, "the image must have moved"


@pytest.mark.parametrize(("fill", "mode"), [("nearest", "nearest"), ("reflect", "reflect")])
def test_what_shows_beyond_the_border(fill: Any, mode: str) -> None:
    config = AugmentConfig(translation=0.9, fill_mode=fill)
    pixels = make_smooth_image(20, 20)
    matrix, params = expected_matrix_and_params(pixels, config, 4)
    assert np.abs(matrix[:2, 2]).max() > 4
    assert np.abs(apply_augmentation(config, pixels, params) - transform_with_scipy(pixels, matrix, mode)).max() <= 1


def test_constant_shows_black_beyond_the_border() -> None:
    config = AugmentConfig(translation=0.5, fill_mode="constant")
    pixels = np.full((1, 20, 20, 3), 200, np.uint8)
    params = np.array([[1, 0, 0, 0, 1, 0]], np.float32)
    params[0, 2] = 6  # each output pixel comes from 6 pixels further right
    out = apply_augmentation(config, pixels, params)
    assert (out[:, :, :14] == 200).all()
    assert (out[:, :, 14:] == 0).all()


def adjust_color_with_numpy(config: AugmentConfig, pixels: Pixels, params: NDArray[np.float32]) -> NDArray[np.float64]:
    x = pixels.astype(np.float64)
    columns = pipeline.get_columns(config)
    neutral = {"brightness": 0.0, "contrast": 1.0, "saturation": 1.0}
    brightness, contrast, saturation = (
        params[:, columns[name]].reshape(-1, 1, 1, 1) if name in columns else value for name, value in neutral.items()
    )
    if pixels.shape[-1] == 3:
        gray = (x @ [0.299, 0.587, 0.114])[..., None]
        x = gray + (x - gray) * saturation
    mean = x.mean((1, 2, 3), keepdims=True)
    return np.asarray(np.clip(mean + (x - mean) * contrast + brightness, 0, 255))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("names", [(name,) for name in COLOR_SETTINGS] + [COLOR_SETTINGS], ids="+".join)
def test_colors_change_as_in_numpy(names: tuple[str, ...], channels: int) -> None:
    settings: dict[str, Any] = dict.fromkeys(names, 0.4)
    config = dataclasses.replace(NO_AUGMENTATION, **settings)
    pixels = random_images(12, 6, channels)
    params = pipeline.sample_params(config, 12, (6, 6), 0, 1)
    out = apply_augmentation(config, pixels, params)
    assert np.abs(out - adjust_color_with_numpy(config, pixels, params)).max() <= 0.5 + 1e-3
    if names != ("saturation",) or channels == 3:
        assert (out != pixels).any()


def test_hue_shifts_as_in_colorsys() -> None:
    config = AugmentConfig(hue=0.5)
    pixels = random_images(6, 5)
    params = pipeline.sample_params(config, 6, (5, 5), 0, 1)
    out = apply_augmentation(config, pixels, params)
    for i in range(6):
        for y, x in np.ndindex(5, 5):
            h, s, v = colorsys.rgb_to_hsv(*(pixels[i, y, x] / 255))
            expected = 255 * np.array(colorsys.hsv_to_rgb((h + params[i, 0]) % 1.0, s, v))
            assert np.abs(out[i, y, x] - expected).max() <= 0.51
    assert np.abs(out.astype(int) - pixels).max() > 50


def test_zero_saturation_gives_gray() -> None:
    config = AugmentConfig(saturation=1.0)
    params = np.zeros((2, 1), np.float32)
    out = apply_augmentation(config, random_images(2, 6), params)
    np.testing.assert_array_equal(out[..., 0], out[..., 1])
    np.testing.assert_array_equal(out[..., 0], out[..., 2])


def test_it_compiles_into_a_graph() -> None:
    from sightline.training.stages import add_augmentation

    keras = backend.keras()
    full_config = dataclasses.replace(EVERYTHING, mixup=0.4, cutmix=1.0)
    inputs = keras.Input((16, 16, 3), dtype="uint8")
    model = add_augmentation(keras.Model(inputs, keras.layers.Rescaling(1.0)(inputs)), full_config)
    pixels = np.concatenate([make_smooth_image(16, 16), make_smooth_image(16, 16)[:, ::-1]] * 2)
    params = pipeline.sample_params(full_config, 4, (16, 16), 0, 1)
    augmented = keras.ops.convert_to_numpy(model.predict_on_batch([pixels, params]))
    # Rounding of halves may differ, which solarize and posterize amplify.
    assert (np.abs(augmented - apply_augmentation(full_config, pixels, params)) <= 1).mean() > 0.99


# Augmentations of other packages


@register_augmentation("test-salt")
class Salt(Augmentation):
    """Sets a fraction of the pixels to white."""

    position = 700
    values = "uint8"

    def sample(
        self, config: AugmentConfig, num_images: int, size: tuple[int, int], seed: int, epoch: int
    ) -> NDArray[np.float64]:
        return self.get_strength(config) * self.make_uniforms(num_images, 1, seed, epoch)

    def apply(self, config: AugmentConfig, pixels: Any, params: Any) -> Any:
        ops = backend.keras().ops
        field = make_generator(0, "salt").random((1, *pixels.shape[1:3], 1)).astype(np.float32)
        return ops.where(ops.convert_to_tensor(field) < per_image(params), ops.full_like(pixels, 255), pixels)


def test_a_registered_augmentation_goes_with_the_others() -> None:
    config = dataclasses.replace(EVERYTHING, mixup=0.4, custom=(CustomAugmentConfig("test-salt", 0.5),))
    without = dataclasses.replace(config, custom=())
    params = pipeline.sample_params(config, 8, (12, 12), 3, 2)
    columns = pipeline.get_columns(config)["test-salt"]
    assert params.shape[1] == pipeline.count_columns(without) + 1
    np.testing.assert_array_equal(
        np.delete(params, columns.start, 1), pipeline.sample_params(without, 8, (12, 12), 3, 2)
    )
    alone = AugmentConfig(custom=config.custom)
    out = apply_augmentation(alone, np.zeros((8, 12, 12, 3), np.uint8), params[:, columns])
    np.testing.assert_allclose((out == 255).all(-1).mean((1, 2)), params[:, columns.start], atol=0.15)
    assert (apply_augmentation(config, random_images(8, 12), params) == 255).any()


def test_an_augmentation_is_applied_once_although_it_is_listed_too() -> None:
    config = AugmentConfig(hue=0.2, custom=(CustomAugmentConfig("hue"), CustomAugmentConfig("test-salt")))
    assert [augmentation.name for augmentation in pipeline.list_enabled(config)] == ["hue", "test-salt"]


def test_an_unknown_augmentation_is_refused_with_a_suggestion() -> None:
    config = AugmentConfig(custom=(CustomAugmentConfig("test-sallt"),))
    with pytest.raises(UsageError, match=r"There is no augmentation 'test-sallt'\. Did you mean 'test-salt'\?"):
        pipeline.is_enabled(config)


@pytest.mark.backends
@pytest.mark.parametrize("fill", ["nearest", "reflect", "constant"])
def test_all_images_are_resampled_at_once_as_by_keras(fill: str) -> None:
    """Beyond every border, by whole pixels and by fractions of them; with a batch of any size in a graph."""
    keras = backend.keras()
    rng = np.random.default_rng(4)
    pixels = rng.uniform(0, 255, (6, 9, 7, 3)).astype(np.float32)
    maps = np.array([[1, 0, 0, 0, 1, 0], [1, 0, 5, 0, 1, -12]], np.float32)
    maps = np.concatenate([maps, rng.normal([1, 0, 0, 0, 1, 0], [0.3, 0.3, 4, 0.3, 0.3, 4], (4, 6)).astype(np.float32)])
    transform = np.concatenate([maps, np.zeros((6, 2), np.float32)], 1)
    expected = keras.ops.image.affine_transform(pixels, transform, interpolation="bilinear", fill_mode=fill)
    outputs = geometry.resample_at_once(keras.ops.convert_to_tensor(pixels), keras.ops.convert_to_tensor(maps), fill)
    expected, outputs = map(keras.ops.convert_to_numpy, (expected, outputs))
    np.testing.assert_allclose(outputs, expected, atol=1e-3)
    inputs = keras.Input((9, 7, 3)), keras.Input((6,))
    model = keras.Model(inputs, geometry.resample_at_once(*inputs, fill))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model([pixels, maps])), outputs, atol=1e-4)
