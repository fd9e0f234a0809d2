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

from networks import pictures
from sightline import backend
from sightline.config import AugmentConfig
from sightline.randomness import generator
from sightline.training import augment, geometry

Pixels = NDArray[np.uint8]

NOTHING = AugmentConfig()
COLOURS = ("brightness", "contrast", "saturation")
GEOMETRY = ("rotation", "shift", "zoom", "shear", "crop", "flip_vertical")
SETTINGS: dict[str, Any] = {
    "flip": True, "flip_vertical": True, "rotation": 30.0, "shift": 0.5, "zoom": 0.5, "shear": 20.0, "crop": 0.3,
    "brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.5, "erasing": 1.0, "randaugment": 2, "mixup": 1.0,
    "cutmix": 1.0,
}  # fmt: skip
OTHERS = {"fill", "flip_alternate", "erasing_from", "erasing_to", "randaugment_magnitude"}  # no effect on their own
UNIT = st.floats(0, 1)


def applied(config: AugmentConfig, pixels: Pixels, drawn: NDArray[np.float32]) -> Pixels:
    found = backend.keras().ops.convert_to_numpy(augment.apply(config, pixels, drawn))
    assert found.dtype == np.uint8
    assert found.shape == pixels.shape
    return np.asarray(found)


def smooth(height: int, width: int, channels: int = 3) -> Pixels:
    """Return a smooth image without any symmetry: [1, H, W, C]."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(5 * x + 3 * y * y + c) + np.cos(4 * y - 2 * x * c) for c in range(channels)]
    return (127.5 + 60 * np.stack(waves, -1))[None].astype(np.uint8)


def still(count: int) -> NDArray[np.float32]:
    """Return parameters that change nothing."""
    return augment.draw(NOTHING, count, (8, 8), 0, 1)


# Sampled parameters


def test_default_changes_nothing() -> None:
    assert not augment.changes(NOTHING)
    drawn = still(3)
    np.testing.assert_array_equal(drawn, [[1, 0, 0, 0, 1, 0, 0, 0, 1, 1] + [0] * 6 + [1, 1, 0, 0, 0, 0]] * 3)
    pixels = pictures(3, 8)
    assert augment.apply(NOTHING, pixels, drawn) is pixels


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(AugmentConfig) if f.name not in OTHERS])
def test_every_setting_alone_changes_pictures(field: str) -> None:
    config = dataclasses.replace(NOTHING, **{field: SETTINGS[field]})
    assert augment.changes(config)
    assert geometry.moves(config) is (field in GEOMETRY)
    pixels = np.concatenate([smooth(12, 12), smooth(12, 12)[:, ::-1]] * 4)
    out = applied(config, pixels, augment.draw(config, 8, (12, 12), 0, 1))
    changed = (out != pixels).any((1, 2, 3))
    assert changed.any()
    assert changed.all() or field in {"flip", "flip_vertical", "crop", "randaugment", "cutmix"}


CONFIGS = st.builds(
    AugmentConfig,
    flip=st.booleans(),
    flip_vertical=st.booleans(),
    rotation=st.floats(0, 180),
    shift=UNIT,
    zoom=st.floats(0, 0.9),
    shear=st.floats(0, 60),
    brightness=UNIT,
    contrast=UNIT,
    saturation=UNIT,
    hue=st.floats(0, 0.5),
)


@given(CONFIGS, st.integers(0, 99), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40))
def test_drawn_values_stay_in_their_ranges(
    config: AugmentConfig, seed: int, epoch: int, height: int, width: int
) -> None:
    drawn = augment.draw(config, 50, (height, width, 3), seed, epoch)
    assert drawn.shape == (50, augment.columns(config))
    assert drawn.dtype == np.float32
    assert np.isfinite(drawn).all()
    assert set(drawn[:, augment.FLIP]) <= ({0, 1} if config.flip else {0})
    assert np.abs(drawn[:, augment.BRIGHTNESS]).max() <= 255 * config.brightness * (1 + 1e-6)
    assert np.abs(drawn[:, augment.CONTRAST] - 1).max() <= config.contrast + 1e-6
    assert np.abs(drawn[:, augment.SATURATION] - 1).max() <= config.saturation + 1e-6
    assert np.abs(drawn[:, augment.HUE]).max() <= config.hue + 1e-6
    matrix = drawn[:, augment.MATRIX].reshape(-1, 2, 3)
    area = np.linalg.det(matrix[:, :, :2].astype(np.float64))
    assert ((area < 0).any()) <= (config.flip_vertical or config.flip)
    low, high = 1 - config.zoom, 1 + config.zoom
    slant = np.cos(np.deg2rad(config.shear))
    assert np.abs(area).min() >= low * low * slant - 1e-4
    assert np.abs(area).max() <= high * high + 1e-4
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    moved = np.hypot(*(matrix[:, :, :2] @ centre + matrix[:, :, 2] - centre).T)
    assert moved.max() <= config.shift * np.hypot(height, width) + 1e-3


def test_alternating_mirrors_show_each_picture_both_ways_in_two_epochs() -> None:
    config = AugmentConfig(flip=True, flip_alternate=True)
    one, two, three = (augment.draw(config, 100, (8, 8), 5, epoch)[:, augment.FLIP] for epoch in (1, 2, 3))
    np.testing.assert_array_equal(one + two, 1)
    np.testing.assert_array_equal(one, three)
    assert 20 < one.sum() < 80, "which way comes first differs by image"


def test_each_range_is_used_to_both_ends() -> None:
    config = AugmentConfig(shift=0.25, brightness=0.5, contrast=0.2, saturation=0.3, hue=0.1)
    drawn = augment.draw(config, 4000, (20, 40), 1, 1)
    for column, middle, reach in [(2, 0, 10), (5, 0, 5), (7, 0, 127.5), (8, 1, 0.2), (9, 1, 0.3), (10, 0, 0.1)]:
        values = (drawn[:, column] - middle) / reach
        assert values.min() < -0.98
        assert values.max() > 0.98
        assert abs(values.mean()) < 0.05
    mirrored = augment.draw(AugmentConfig(flip=True), 4000, (20, 40), 1, 1)
    assert mirrored[:, augment.FLIP].mean() == pytest.approx(0.5, abs=0.03)
    upside = augment.draw(AugmentConfig(flip_vertical=True), 4000, (20, 40), 1, 1)
    assert (upside[:, 4] < 0).mean() == pytest.approx(0.5, abs=0.03)


WILD = AugmentConfig(
    flip=True, flip_vertical=True, rotation=40, shift=0.2, zoom=0.2, shear=10, brightness=0.1, contrast=0.2,
    saturation=0.3, hue=0.1, crop=0.1, erasing=0.5, randaugment=2,
)  # fmt: skip


def test_draws_depend_on_seed_epoch_and_position_alone() -> None:
    drawn = augment.draw(WILD, 20, (16, 16), 3, 2)
    np.testing.assert_array_equal(augment.draw(WILD, 20, (16, 16), 3, 2), drawn)
    np.testing.assert_array_equal(augment.draw(WILD, 7, (16, 16), 3, 2), drawn[:7])
    mixing = dataclasses.replace(WILD, mixup=0.4, cutmix=1.0)
    mixed = augment.draw(mixing, 20, (16, 16), 3, 2)
    np.testing.assert_array_equal(augment.draw(mixing, 7, (16, 16), 3, 2), mixed[:7])
    for other in (augment.draw(mixing, 20, (16, 16), 4, 2), augment.draw(mixing, 20, (16, 16), 3, 3)):
        for columns in (slice(0, 6), slice(7, 11), augment.ERASED, augment.MIXED, augment.CHAIN):
            assert not np.array_equal(other[:, columns], mixed[:, columns])
    assert len(np.unique(drawn, axis=0)) == 20


@pytest.mark.parametrize(
    ("settings", "columns"),
    [
        ({"brightness": 0.1}, augment.BRIGHTNESS),
        ({"hue": 0.1}, augment.HUE),
        ({"erasing": 0.5}, augment.ERASED),
        ({"randaugment": 1}, slice(augment.CHAIN.start, augment.CHAIN.start + 2)),
    ],
    ids=str,
)
def test_one_setting_does_not_move_another(settings: dict[str, Any], columns: Any) -> None:
    only = augment.draw(AugmentConfig(**settings), 20, (16, 16), 3, 2)
    np.testing.assert_array_equal(augment.draw(WILD, 20, (16, 16), 3, 2)[:, columns], only[:, columns])


# Effect on pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_go_through_everything(channels: int) -> None:
    everything = dataclasses.replace(WILD, mixup=0.4, cutmix=1.0)
    pixels = pictures(8, 12, channels)
    out = applied(everything, pixels, augment.draw(everything, 8, (12, 12), 0, 1))
    assert (out != pixels).any((1, 2, 3)).all()


def test_pictures_change_alone_and_the_same_in_every_batch() -> None:
    pixels = pictures(6, 16)
    drawn = augment.draw(WILD, 6, (16, 16), 0, 1)
    whole = applied(WILD, pixels, drawn)
    order = np.array([4, 1, 5])
    np.testing.assert_array_equal(applied(WILD, pixels[order], drawn[order]), whole[order])


@pytest.mark.parametrize("channels", [1, 3])
def test_mirror_is_exact(channels: int) -> None:
    config = AugmentConfig(flip=True)
    pixels = pictures(8, 9, channels)
    drawn = augment.draw(config, 8, (9, 9), 0, 1)
    mirrored = drawn[:, augment.FLIP] == 1
    assert 0 < mirrored.sum() < 8
    out = applied(config, pixels, drawn)
    np.testing.assert_array_equal(out[mirrored], pixels[mirrored, :, ::-1])
    np.testing.assert_array_equal(out[~mirrored], pixels[~mirrored])


@pytest.mark.parametrize("size", [8, 9])
def test_upside_down_is_exact(size: int) -> None:
    config = AugmentConfig(flip_vertical=True)
    pixels = pictures(8, size)
    drawn = augment.draw(config, 8, (size, size), 0, 1)
    turned = drawn[:, 4] < 0
    assert 0 < turned.sum() < 8
    out = applied(config, pixels, drawn)
    np.testing.assert_array_equal(out[turned], pixels[turned, ::-1])
    np.testing.assert_array_equal(out[~turned], pixels[~turned])


def keras_matrix(
    theta: float, shift: tuple[float, float], shear: float, zoom: tuple[float, float], size: tuple[int, int]
) -> NDArray[np.float64]:
    """Return the map from output to input over (x, y, 1), as Keras' ImageDataGenerator defines it; angles in degrees.

    R·Shift·Shear·Zoom about the center, `shift` in pixels, `shift` and `zoom` as (x, y), `size` as (height, width).
    """
    t, s = np.deg2rad(theta), np.deg2rad(shear)
    turn = np.array([[np.cos(t), -np.sin(t), 0], [np.sin(t), np.cos(t), 0], [0, 0, 1]])
    move = np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]])
    slant = np.array([[1, -np.sin(s), 0], [0, np.cos(s), 0], [0, 0, 1]])
    scale = np.diag([*zoom, 1.0])
    centre = np.array([[1, 0, size[1] / 2 - 0.5], [0, 1, size[0] / 2 - 0.5], [0, 0, 1]])
    return np.asarray(centre @ turn @ move @ slant @ scale @ np.linalg.inv(centre))


def signed(pixels: Pixels, config: AugmentConfig, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return the matrix by Keras' definition for the numbers of the first image, and the parameters from `draw`."""
    height, width = pixels.shape[1:3]
    u = 2 * generator(seed, "augment", 1).random((1, 12))[0] - 1
    matrix = keras_matrix(
        config.rotation * u[1],
        (config.shift * width * u[4], config.shift * height * u[3]),
        config.shear * u[2],
        (1 + config.zoom * u[6], 1 + config.zoom * u[5]),
        (height, width),
    )
    return matrix, augment.draw(config, 1, pixels.shape[1:3], seed, 1)


TUTORIAL = AugmentConfig(rotation=40, shift=0.2, zoom=0.2, flip=True)
"""``rotation_range=40, width_shift_range=0.2, height_shift_range=0.2, zoom_range=0.2, horizontal_flip=True``."""


@pytest.mark.parametrize("seed", range(6))
def test_the_generator_of_the_tutorial_answers_the_same(seed: int) -> None:
    """Compare with `ImageDataGenerator` on a square image, since it mixes up the sides of others.

    Rotation, shift, zoom, then the flip; beyond the border, the nearest pixel.
    """
    backend.keras()
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    theirs = ImageDataGenerator(
        rotation_range=40, width_shift_range=0.2, height_shift_range=0.2, zoom_range=0.2, horizontal_flip=True,
        fill_mode="nearest",
    )  # fmt: skip
    pixels, side = smooth(32, 32), 32
    u = generator(seed, "augment", 1).random((1, 12))[0]
    s = 2 * u - 1
    parameters = {  # Keras names them as if x were the row
        "theta": 40 * s[1], "tx": 0.2 * side * s[4], "ty": 0.2 * side * s[3], "shear": 0, "zx": 1 + 0.2 * s[6],
        "zy": 1 + 0.2 * s[5], "flip_horizontal": u[0] < 0.5,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses deprecated SciPy names
        expected = theirs.apply_transform(pixels[0].astype(np.float64), parameters)
    out = applied(TUTORIAL, pixels, augment.draw(TUTORIAL, 1, (side, side), seed, 1))
    assert np.abs(out[0] - expected).max() <= 1
    assert np.abs(out[0].astype(int) - pixels[0]).mean() > 5
    if u[0] < 0.5:  # the flip comes last: first, it would give another image
        parameters["flip_horizontal"] = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first = theirs.apply_transform(pixels[0, :, ::-1].astype(np.float64), parameters)
        assert np.abs(out[0] - first).max() > 5


def test_the_generator_of_the_tutorial_draws_from_the_same_ranges() -> None:
    backend.keras()
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    theirs = ImageDataGenerator(
        rotation_range=40, width_shift_range=0.2, height_shift_range=0.2, zoom_range=0.2, horizontal_flip=True
    )
    drawn = [theirs.get_random_transform((32, 32, 3), seed=i) for i in range(2000)]
    names = ["theta", "tx", "ty", "zx", "zy", "flip_horizontal"]
    expected = np.array([[float(d[name]) for name in names] for d in drawn])
    ours = augment.draw(TUTORIAL, 2000, (32, 32), 0, 1)
    matrix = ours[:, augment.MATRIX].reshape(-1, 2, 3).astype(np.float64)
    mirror = 1 - 2 * ours[:, augment.FLIP]
    across, down = matrix[:, :, 0] * mirror[:, None], matrix[:, :, 1]
    middle = (matrix @ [15.5, 15.5, 1] - 15.5)[..., None]  # the shift, rotated with the image
    angle = np.arctan2(across[:, 1], across[:, 0])
    back = np.stack([np.stack([np.cos(angle), np.sin(angle)], -1), np.stack([-np.sin(angle), np.cos(angle)], -1)], -2)
    shift = (back @ middle)[..., 0]
    found = np.stack(
        [np.rad2deg(angle), shift[:, 0], shift[:, 1], np.hypot(*across.T), np.hypot(*down.T), ours[:, augment.FLIP]], 1
    )
    for quantile in (0, 0.25, 0.5, 0.75, 1):
        reach = np.array([80, 12.8, 12.8, 0.4, 0.4])
        difference = (np.quantile(found, quantile, 0) - np.quantile(expected, quantile, 0))[:5] / reach
        assert np.abs(difference).max() < 0.04
    np.testing.assert_allclose(found[:, 5].mean(), expected[:, 5].mean(), atol=0.04)


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_a_crop_is_a_cut_out_of_the_padded_picture(share: float) -> None:
    """The reference pads and crops in NumPy (He et al., 2015: 4 black pixels around 32)."""
    for fill, mode in (("constant", "constant"), ("nearest", "edge"), ("reflect", "symmetric")):
        config = AugmentConfig(crop=share, fill=fill)  # type: ignore[arg-type]
        pixels = np.repeat(smooth(20, 12), 60, 0)
        drawn = augment.draw(config, 60, (20, 12), 0, 1)
        places = drawn[:, [2, 5]].astype(int)
        tall, wide = round(20 * share), round(12 * share)
        assert set(places[:, 0]) == set(range(-wide, wide + 1))
        assert set(places[:, 1]) == set(range(-tall, tall + 1))
        padded = np.pad(pixels[0], ((tall, tall), (wide, wide), (0, 0)), mode=mode)  # type: ignore[call-overload]
        expected = [padded[tall + y : tall + y + 20, wide + x : wide + x + 12] for x, y in places]
        np.testing.assert_array_equal(applied(config, pixels, drawn), expected)


def by_scipy(pixels: Pixels, matrix: NDArray[np.float64], mode: str) -> NDArray[np.float64]:
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
    "shift": AugmentConfig(shift=0.3),
    "zoom": AugmentConfig(zoom=0.5),
    "shear": AugmentConfig(shear=40),
    "all": AugmentConfig(rotation=40, shift=0.2, zoom=0.2, shear=20),
}


@pytest.mark.parametrize("size", [(31, 31), (24, 40)], ids=str)
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("move", MOVES)
def test_geometry_is_that_of_keras_image_data_generator(move: str, seed: int, size: tuple[int, int]) -> None:
    pixels = smooth(*size)
    matrix, drawn = signed(pixels, MOVES[move], seed)
    np.testing.assert_allclose(drawn[0, augment.MATRIX].reshape(2, 3), matrix[:2], atol=1e-4)
    out = applied(MOVES[move], pixels, drawn)
    difference = np.abs(out - by_scipy(pixels, matrix, "nearest"))
    assert difference.max() <= 1
    assert np.abs(out.astype(int) - pixels).max() > 2, "the image must have moved"


@pytest.mark.parametrize(("fill", "mode"), [("nearest", "nearest"), ("reflect", "reflect")])
def test_what_shows_beyond_the_border(fill: Any, mode: str) -> None:
    config = AugmentConfig(shift=0.9, fill=fill)
    pixels = smooth(20, 20)
    matrix, drawn = signed(pixels, config, 4)
    assert np.abs(matrix[:2, 2]).max() > 4
    assert np.abs(applied(config, pixels, drawn) - by_scipy(pixels, matrix, mode)).max() <= 1


def test_constant_shows_black_beyond_the_border() -> None:
    config = AugmentConfig(shift=0.5, fill="constant")
    pixels = np.full((1, 20, 20, 3), 200, np.uint8)
    drawn = still(1)
    drawn[0, 2] = 6  # each output pixel comes from 6 pixels further right
    out = applied(config, pixels, drawn)
    assert (out[:, :, :14] == 200).all()
    assert (out[:, :, 14:] == 0).all()


def colour_reference(pixels: Pixels, drawn: NDArray[np.float32]) -> NDArray[np.float64]:
    x = pixels.astype(np.float64)
    brightness, contrast, saturation = (drawn[:, i].reshape(-1, 1, 1, 1) for i in (7, 8, 9))
    if pixels.shape[-1] == 3:
        grey = (x @ [0.299, 0.587, 0.114])[..., None]
        x = grey + (x - grey) * saturation
    mean = x.mean((1, 2, 3), keepdims=True)
    return np.asarray(np.clip(mean + (x - mean) * contrast + brightness, 0, 255))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("names", [(name,) for name in COLOURS] + [COLOURS], ids="+".join)
def test_colours_change_as_in_numpy(names: tuple[str, ...], channels: int) -> None:
    settings: dict[str, Any] = dict.fromkeys(names, 0.4)
    config = dataclasses.replace(NOTHING, **settings)
    pixels = pictures(12, 6, channels)
    drawn = augment.draw(config, 12, (6, 6), 0, 1)
    out = applied(config, pixels, drawn)
    assert np.abs(out - colour_reference(pixels, drawn)).max() <= 0.5 + 1e-3
    if names != ("saturation",) or channels == 3:
        assert (out != pixels).any()


def test_hue_turns_as_in_colorsys() -> None:
    config = AugmentConfig(hue=0.5)
    pixels = pictures(6, 5)
    drawn = augment.draw(config, 6, (5, 5), 0, 1)
    out = applied(config, pixels, drawn)
    for i in range(6):
        for y, x in np.ndindex(5, 5):
            h, s, v = colorsys.rgb_to_hsv(*(pixels[i, y, x] / 255))
            expected = 255 * np.array(colorsys.hsv_to_rgb((h + drawn[i, augment.HUE]) % 1.0, s, v))
            assert np.abs(out[i, y, x] - expected).max() <= 0.51
    assert np.abs(out.astype(int) - pixels).max() > 50


def test_no_saturation_leaves_grey() -> None:
    config = AugmentConfig(saturation=1.0)
    drawn = still(2)
    drawn[:, augment.SATURATION] = 0
    out = applied(config, pictures(2, 6), drawn)
    np.testing.assert_array_equal(out[..., 0], out[..., 1])
    np.testing.assert_array_equal(out[..., 0], out[..., 2])


def test_it_compiles_into_a_graph() -> None:
    from sightline.training.stages import with_augmentation

    keras = backend.keras()
    everything = dataclasses.replace(WILD, mixup=0.4, cutmix=1.0)
    inputs = keras.Input((16, 16, 3), dtype="uint8")
    model = with_augmentation(keras.Model(inputs, keras.layers.Rescaling(1.0)(inputs)), everything)
    pixels = np.concatenate([smooth(16, 16), smooth(16, 16)[:, ::-1]] * 2)
    drawn = augment.draw(everything, 4, (16, 16), 0, 1)
    found = keras.ops.convert_to_numpy(model.predict_on_batch([pixels, drawn]))
    # Rounding of halves may differ, which solarize and posterize amplify.
    assert (np.abs(found - applied(everything, pixels, drawn)) <= 1).mean() > 0.99
