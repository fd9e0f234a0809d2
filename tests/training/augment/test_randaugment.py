"""RandAugment's operations against those of Pillow, which the paper's code uses."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from scipy.ndimage import affine_transform

from networks import random_images
from sightline import backend
from sightline.config import AugmentConfig
from sightline.training.augment import randaugment

Pixels = NDArray[np.uint8]
PillowOperation = Callable[[Image.Image, float], Image.Image]
ONE_OPERATION = AugmentConfig(randaugment=1)

RANDAUGMENT = randaugment.RandAugment()


def make_smooth_image(height: int = 24, width: int = 20) -> Pixels:
    """Return an image without any symmetry, darker than the full range: [1, H, W, 3]."""
    y, x = np.mgrid[0:height, 0:width] / 24
    waves = [np.sin(5 * x + 3 * y * y + c) + np.cos(4 * y - 2 * x * c) for c in range(3)]
    return (120 + 50 * np.stack(waves, -1))[None].astype(np.uint8)


def apply_operation(
    name: str, strength: float, pixels: Pixels, config: AugmentConfig = ONE_OPERATION
) -> NDArray[np.float32]:
    operations = np.tile(np.array([[randaugment.OPERATIONS.index(name), strength]], np.float32), (len(pixels), 1))
    x = RANDAUGMENT.apply(config, pixels.astype(np.float32), operations)
    return np.asarray(backend.keras().ops.convert_to_numpy(x))


PILLOW_OPERATIONS: dict[str, PillowOperation] = {
    "identity": lambda image, strength: image,
    "auto_contrast": lambda image, strength: ImageOps.autocontrast(image),
    "solarize": lambda image, strength: ImageOps.solarize(image, math.ceil(256 * (1 - abs(strength)))),
    "posterize": lambda image, strength: ImageOps.posterize(image, 8 - round(4 * abs(strength))),
    "color": lambda image, strength: ImageEnhance.Color(image).enhance(1 + 0.9 * strength),
    "contrast": lambda image, strength: ImageEnhance.Contrast(image).enhance(1 + 0.9 * strength),
    "brightness": lambda image, strength: ImageEnhance.Brightness(image).enhance(1 + 0.9 * strength),
    "sharpness": lambda image, strength: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * strength),
}


@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.0, 0.55, 1.0])
@pytest.mark.parametrize("name", PILLOW_OPERATIONS)
def test_values_change_as_in_pillow(name: str, strength: float) -> None:
    for pixels in (make_smooth_image(), random_images(1, 16), np.full((1, 9, 9, 3), 77, np.uint8)):
        expected = np.asarray(PILLOW_OPERATIONS[name](Image.fromarray(pixels[0]), strength), np.float32)
        actual = apply_operation(name, strength, pixels)[0]
        difference = np.abs(actual - expected)
        # Pillow rounds the grayscale or smoothed image first, and the blend doubles that error.
        assert difference.max() <= (0 if name in {"identity", "solarize", "posterize"} else 2), difference.max()
        assert (actual == np.round(actual)).all()


def swap_axes(matrix: list[list[float]], shift: tuple[float, float]) -> tuple[NDArray[np.float64], tuple[float, float]]:
    return np.array(matrix)[::-1, ::-1], shift[::-1]


@pytest.mark.parametrize("strength", [-1.0, 0.4])
@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_geometry_matches_scipy_about_the_center(name: str, strength: float) -> None:
    pixels = make_smooth_image()
    height, width = pixels.shape[1:3]
    t = math.radians(30 * strength)
    matrices: dict[str, list[list[float]]] = {
        "rotate": [[math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]],
        "shear_x": [[1, 0.3 * strength], [0, 1]],
        "shear_y": [[1, 0], [0.3 * strength, 1]],
    }
    matrix = matrices.get(name, [[1, 0], [0, 1]])
    shift = {"translate_x": (0.45 * width * strength, 0), "translate_y": (0, 0.45 * height * strength)}.get(
        name, (0, 0)
    )
    swapped_matrix, swapped_shift = swap_axes(matrix, shift)
    center = np.array([(height - 1) / 2, (width - 1) / 2])
    offset = center - swapped_matrix @ center + swapped_shift
    expected = np.stack(
        [
            affine_transform(pixels[0, :, :, c].astype(float), swapped_matrix, offset, order=1, mode="nearest")
            for c in range(3)
        ],
        -1,
    )
    actual = apply_operation(name, strength, pixels)[0]
    assert np.abs(actual - expected).max() <= 1
    assert np.abs(actual - pixels[0]).mean() > 1


def test_each_image_gets_its_own_operation() -> None:
    pixels = np.repeat(make_smooth_image(), len(randaugment.OPERATIONS), 0)
    operations = np.stack([np.arange(len(pixels)), np.full(len(pixels), 0.7)], 1).astype(np.float32)
    out = backend.keras().ops.convert_to_numpy(RANDAUGMENT.apply(ONE_OPERATION, pixels.astype(np.float32), operations))
    for i, name in enumerate(randaugment.OPERATIONS):
        np.testing.assert_allclose(out[i : i + 1], apply_operation(name, 0.7, make_smooth_image()), atol=1)


def test_operations_are_applied_in_order() -> None:
    """Brightness followed by posterize differs from the reverse order."""
    config = AugmentConfig(randaugment=2)
    first, second = (randaugment.OPERATIONS.index(n) for n in ("brightness", "posterize"))
    pixels = make_smooth_image().astype(np.float32)
    both = RANDAUGMENT.apply(config, pixels, np.array([[first, 0.5, second, 1.0]], np.float32))
    one = apply_operation("brightness", 0.5, make_smooth_image())
    np.testing.assert_array_equal(np.asarray(both), apply_operation("posterize", 1.0, one.astype(np.uint8)))
    assert (
        np.asarray(both)
        != apply_operation("brightness", 0.5, apply_operation("posterize", 1.0, make_smooth_image()).astype(np.uint8))
    ).any()


def test_operations_and_signs_are_sampled_uniformly() -> None:
    config = AugmentConfig(randaugment=3, randaugment_magnitude=7)
    operations = RANDAUGMENT.sample(config, 13_000, (8, 8), 0, 1).reshape(-1, 2)
    counts = np.bincount(operations[:, 0].astype(int), minlength=13)
    assert len(counts) == len(randaugment.OPERATIONS) == 13
    assert np.abs(counts - 3000).max() < 250
    assert set(operations[:, 1]) == {-0.7, 0.7}
    assert abs(operations[:, 1].mean()) < 0.02
    longer = RANDAUGMENT.sample(AugmentConfig(randaugment=5, randaugment_magnitude=7), 13_000, (8, 8), 0, 1)
    np.testing.assert_array_equal(longer[:, :6], RANDAUGMENT.sample(config, 13_000, (8, 8), 0, 1))
