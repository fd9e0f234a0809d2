"""Augmentation against NumPy and SciPy: what is drawn, and what it does to pixels."""

from __future__ import annotations

import dataclasses
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
from sightline.training import augment

Pixels = NDArray[np.uint8]

NOTHING = AugmentConfig()
COLOURS = ("brightness", "contrast", "saturation")
GEOMETRY = ("rotation", "shift", "zoom", "shear", "flip_vertical")
UNIT = st.floats(0, 1)


def applied(config: AugmentConfig, pixels: Pixels, drawn: NDArray[np.float32]) -> Pixels:
    found = backend.keras().ops.convert_to_numpy(augment.apply(config, pixels, drawn))
    assert found.dtype == np.uint8
    assert found.shape == pixels.shape
    return np.asarray(found)


def smooth(height: int, width: int, channels: int = 3) -> Pixels:
    """A picture without any symmetry, whose neighbours differ little: [1, H, W, C]."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(5 * x + 3 * y * y + c) + np.cos(4 * y - 2 * x * c) for c in range(channels)]
    return (127.5 + 60 * np.stack(waves, -1))[None].astype(np.uint8)


def still(count: int) -> NDArray[np.float32]:
    """Drawn changes that change nothing."""
    return augment.draw(NOTHING, count, (8, 8), 0, 1)


# What is drawn


def test_default_changes_nothing() -> None:
    assert not augment.changes(NOTHING)
    drawn = still(3)
    np.testing.assert_array_equal(drawn, [[1, 0, 0, 0, 1, 0, 0, 0, 1, 1]] * 3)
    pixels = pictures(3, 8)
    assert augment.apply(NOTHING, pixels, drawn) is pixels


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(AugmentConfig) if f.name != "fill"])
def test_every_setting_alone_changes_pictures(field: str) -> None:
    value: Any = True if field.startswith("flip") else 0.5 if field != "rotation" else 30.0
    value = 20.0 if field == "shear" else value
    config = dataclasses.replace(NOTHING, **{field: value})
    assert augment.changes(config)
    assert augment.moves(config) is (field in GEOMETRY)
    pixels = np.repeat(smooth(12, 12), 8, 0)
    out = applied(config, pixels, augment.draw(config, 8, (12, 12), 0, 1))
    changed = (out != pixels).any((1, 2, 3))
    assert changed.any()
    assert changed.all() or field.startswith("flip")


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
)


@given(CONFIGS, st.integers(0, 99), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40))
def test_drawn_values_stay_in_their_ranges(
    config: AugmentConfig, seed: int, epoch: int, height: int, width: int
) -> None:
    drawn = augment.draw(config, 50, (height, width, 3), seed, epoch)
    assert drawn.shape == (50, augment.COLUMNS)
    assert drawn.dtype == np.float32
    assert np.isfinite(drawn).all()
    assert set(drawn[:, augment.FLIP]) <= ({0, 1} if config.flip else {0})
    assert np.abs(drawn[:, augment.BRIGHTNESS]).max() <= 255 * config.brightness * (1 + 1e-6)
    assert np.abs(drawn[:, augment.CONTRAST] - 1).max() <= config.contrast + 1e-6
    assert np.abs(drawn[:, augment.SATURATION] - 1).max() <= config.saturation + 1e-6
    matrix = drawn[:, augment.MATRIX].reshape(-1, 2, 3)
    area = np.linalg.det(matrix[:, :, :2].astype(np.float64))
    assert ((area < 0).any()) <= config.flip_vertical
    low, high = 1 - config.zoom, 1 + config.zoom
    slant = np.cos(np.deg2rad(config.shear))
    assert np.abs(area).min() >= low * low * slant - 1e-4
    assert np.abs(area).max() <= high * high + 1e-4
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    moved = np.hypot(*(matrix[:, :, :2] @ centre + matrix[:, :, 2] - centre).T)
    assert moved.max() <= config.shift * np.hypot(height, width) + 1e-3


def test_each_range_is_used_to_both_ends() -> None:
    config = AugmentConfig(shift=0.25, brightness=0.5, contrast=0.2, saturation=0.3, flip=True)
    drawn = augment.draw(config, 4000, (20, 40), 1, 1)
    for column, middle, reach in [(2, 0, 10), (5, 0, 5), (7, 0, 127.5), (8, 1, 0.2), (9, 1, 0.3)]:
        values = (drawn[:, column] - middle) / reach
        assert values.min() < -0.98
        assert values.max() > 0.98
        assert abs(values.mean()) < 0.05
    assert drawn[:, augment.FLIP].mean() == pytest.approx(0.5, abs=0.03)
    upside = augment.draw(AugmentConfig(flip_vertical=True), 4000, (20, 40), 1, 1)
    assert (upside[:, 4] < 0).mean() == pytest.approx(0.5, abs=0.03)


WILD = AugmentConfig(
    flip=True, flip_vertical=True, rotation=40, shift=0.2, zoom=0.2, shear=10, brightness=0.1, contrast=0.2,
    saturation=0.3,
)  # fmt: skip


def test_draws_depend_on_seed_epoch_and_position_alone() -> None:
    drawn = augment.draw(WILD, 20, (16, 16), 3, 2)
    np.testing.assert_array_equal(augment.draw(WILD, 20, (16, 16), 3, 2), drawn)
    np.testing.assert_array_equal(augment.draw(WILD, 7, (16, 16), 3, 2), drawn[:7])
    for other in (augment.draw(WILD, 20, (16, 16), 4, 2), augment.draw(WILD, 20, (16, 16), 3, 3)):
        assert not (other == drawn).any(1).all()
        assert not np.array_equal(other, drawn)
    assert len(np.unique(drawn, axis=0)) == 20


def test_one_setting_does_not_move_another() -> None:
    only = augment.draw(AugmentConfig(brightness=0.1), 20, (16, 16), 3, 2)
    np.testing.assert_array_equal(
        augment.draw(WILD, 20, (16, 16), 3, 2)[:, augment.BRIGHTNESS], only[:, augment.BRIGHTNESS]
    )


# What becomes of pixels


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

    R·Shift·Shear·Zoom about the centre, `shift` in pixels, `shift` and `zoom` as (x, y), `size` as (height, width).
    """
    t, s = np.deg2rad(theta), np.deg2rad(shear)
    turn = np.array([[np.cos(t), -np.sin(t), 0], [np.sin(t), np.cos(t), 0], [0, 0, 1]])
    move = np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]])
    slant = np.array([[1, -np.sin(s), 0], [0, np.cos(s), 0], [0, 0, 1]])
    scale = np.diag([*zoom, 1.0])
    centre = np.array([[1, 0, size[1] / 2 - 0.5], [0, 1, size[0] / 2 - 0.5], [0, 0, 1]])
    return np.asarray(centre @ turn @ move @ slant @ scale @ np.linalg.inv(centre))


def signed(pixels: Pixels, config: AugmentConfig, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return Keras' matrix for what `draw` should have drawn for the first picture, and what it drew."""
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
    assert np.abs(out.astype(int) - pixels).max() > 2, "the picture must have moved"


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
    drawn[0, 2] = 6  # each output pixel comes from 6 further right
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
    inputs = keras.Input((16, 16, 3), dtype="uint8")
    model = with_augmentation(keras.Model(inputs, keras.layers.Rescaling(1.0)(inputs)), WILD)
    pixels = pictures(4, 16)
    drawn = augment.draw(WILD, 4, (16, 16), 0, 1)
    found = keras.ops.convert_to_numpy(model.predict_on_batch([pixels, drawn]))
    assert np.abs(found - applied(WILD, pixels, drawn)).max() <= 1  # a rounding at the half may fall either way
