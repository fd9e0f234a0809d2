"""RandAugment's operations against those of Pillow, which the paper's code uses."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from scipy.ndimage import affine_transform

from networks import pictures
from sightline import backend
from sightline.config import AugmentConfig
from sightline.training import randaugment

Pixels = NDArray[np.uint8]
Drawn = Callable[[Image.Image, float], Image.Image]
ONE = AugmentConfig(randaugment=1)


def smooth(height: int = 24, width: int = 20) -> Pixels:
    """Return an image without any symmetry, darker than the full range: [1, H, W, 3]."""
    y, x = np.mgrid[0:height, 0:width] / 24
    waves = [np.sin(5 * x + 3 * y * y + c) + np.cos(4 * y - 2 * x * c) for c in range(3)]
    return (120 + 50 * np.stack(waves, -1))[None].astype(np.uint8)


def operated(name: str, strength: float, pixels: Pixels, config: AugmentConfig = ONE) -> NDArray[np.float32]:
    drawn = np.tile(np.array([[randaugment.OPERATIONS.index(name), strength]], np.float32), (len(pixels), 1))
    x = randaugment.operate(config, pixels.astype(np.float32), drawn)
    return np.asarray(backend.keras().ops.convert_to_numpy(x))


PILLOWS: dict[str, Drawn] = {
    "identity": lambda image, strength: image,
    "auto_contrast": lambda image, strength: ImageOps.autocontrast(image),
    "solarize": lambda image, strength: ImageOps.solarize(image, math.ceil(256 * (1 - abs(strength)))),
    "posterize": lambda image, strength: ImageOps.posterize(image, 8 - round(4 * abs(strength))),
    "colour": lambda image, strength: ImageEnhance.Color(image).enhance(1 + 0.9 * strength),
    "contrast": lambda image, strength: ImageEnhance.Contrast(image).enhance(1 + 0.9 * strength),
    "brightness": lambda image, strength: ImageEnhance.Brightness(image).enhance(1 + 0.9 * strength),
    "sharpness": lambda image, strength: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * strength),
}


@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.0, 0.55, 1.0])
@pytest.mark.parametrize("name", PILLOWS)
def test_levels_change_as_in_pillow(name: str, strength: float) -> None:
    for pixels in (smooth(), pictures(1, 16), np.full((1, 9, 9, 3), 77, np.uint8)):
        expected = np.asarray(PILLOWS[name](Image.fromarray(pixels[0]), strength), np.float32)
        found = operated(name, strength, pixels)[0]
        difference = np.abs(found - expected)
        # Pillow rounds the grayscale or smoothed image first, and the blend doubles that error.
        assert difference.max() <= (0 if name in {"identity", "solarize", "posterize"} else 2), difference.max()
        assert (found == np.round(found)).all()


def rows_first(
    matrix: list[list[float]], shift: tuple[float, float]
) -> tuple[NDArray[np.float64], tuple[float, float]]:
    return np.array(matrix)[::-1, ::-1], shift[::-1]


@pytest.mark.parametrize("strength", [-1.0, 0.4])
@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_geometry_is_scipys_about_the_centre(name: str, strength: float) -> None:
    pixels = smooth()
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
    turned, moved = rows_first(matrix, shift)
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    offset = centre - turned @ centre + moved
    expected = np.stack(
        [affine_transform(pixels[0, :, :, c].astype(float), turned, offset, order=1, mode="nearest") for c in range(3)],
        -1,
    )
    found = operated(name, strength, pixels)[0]
    assert np.abs(found - expected).max() <= 1
    assert np.abs(found - pixels[0]).mean() > 1


def test_each_picture_gets_its_own_operation() -> None:
    pixels = np.repeat(smooth(), len(randaugment.OPERATIONS), 0)
    drawn = np.stack([np.arange(len(pixels)), np.full(len(pixels), 0.7)], 1).astype(np.float32)
    out = backend.keras().ops.convert_to_numpy(randaugment.operate(ONE, pixels.astype(np.float32), drawn))
    for i, name in enumerate(randaugment.OPERATIONS):
        np.testing.assert_allclose(out[i : i + 1], operated(name, 0.7, smooth()), atol=1)


def test_operations_follow_one_another() -> None:
    """Brightness followed by posterize differs from the reverse order."""
    config = AugmentConfig(randaugment=2)
    first, second = (randaugment.OPERATIONS.index(n) for n in ("brightness", "posterize"))
    pixels = smooth().astype(np.float32)
    both = randaugment.operate(config, pixels, np.array([[first, 0.5, second, 1.0]], np.float32))
    one = operated("brightness", 0.5, smooth())
    np.testing.assert_array_equal(np.asarray(both), operated("posterize", 1.0, one.astype(np.uint8)))
    assert (
        np.asarray(both) != operated("brightness", 0.5, operated("posterize", 1.0, smooth()).astype(np.uint8))
    ).any()


def test_every_operation_is_drawn_as_often_and_either_way() -> None:
    config = AugmentConfig(randaugment=3, randaugment_magnitude=7)
    drawn = randaugment.chains(config, 13_000, 0, 1).reshape(-1, 2)
    counts = np.bincount(drawn[:, 0].astype(int), minlength=13)
    assert len(counts) == len(randaugment.OPERATIONS) == 13
    assert np.abs(counts - 3000).max() < 250
    assert set(drawn[:, 1]) == {-0.7, 0.7}
    assert abs(drawn[:, 1].mean()) < 0.02
    longer = randaugment.chains(AugmentConfig(randaugment=5, randaugment_magnitude=7), 13_000, 0, 1)
    np.testing.assert_array_equal(longer[:, :6], randaugment.chains(config, 13_000, 0, 1))
