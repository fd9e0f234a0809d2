"""The tables of a lossless WebP are counted as libwebp allocates them, and no ordinary file has many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

import hostile_boxes
from sightline.errors import ImageError
from sightline.preprocessing import PreprocessingSpec
from sightline.preprocessing.webp_limits import measure_tables
from synthetic_images import encode

MOST_BLOCKS = 2_600  # that libwebp gives tables of their own
GROUP_BYTES = 20_584  # with a color cache of 11 bits


def draw(kind: str, side: int) -> Image.Image:
    rng = np.random.default_rng(side)
    coarse = Image.fromarray(rng.integers(0, 256, (side // 6 + 1, side // 6 + 1, 4), np.uint8))
    pixels = np.array(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(int)
    if kind == "noisy":
        pixels += rng.integers(-9, 10, pixels.shape)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if kind == "palette":
        return image.convert("RGB").quantize(13).convert("RGB")
    return image if kind == "alpha" else image.convert("RGB")


@pytest.mark.parametrize("kind", ["smooth", "noisy", "alpha", "palette"])
@pytest.mark.parametrize("options", [
    {"lossless": True, "method": 0}, {"lossless": True, "method": 4, "quality": 100},
    {"lossless": True, "method": 6, "quality": 20}, {"lossless": False, "alpha_quality": 100},
])  # fmt: skip
def test_ordinary_files_have_few_tables(kind: str, options: dict[str, object]) -> None:
    for side in (9, 201):
        data = encode(draw(kind, side), "WEBP", **options)
        assert measure_tables(data, 0, 0) <= MOST_BLOCKS * GROUP_BYTES
        assert PreprocessingSpec(8, 8).decode(data).shape == (8, 8, 3)


def test_blocks_are_counted_behind_transforms_in_alpha_and_in_later_frames() -> None:
    expected = 55 * 55 * GROUP_BYTES
    for transform in (None, 0, 1):
        assert measure_tables(hostile_boxes.webp_of_groups(3_000, 219, transform=transform), 0, 0) == expected
    assert measure_tables(hostile_boxes.webp_of_alpha(3_000, 219), 0, 0) == expected
    animation = hostile_boxes.webp_frame_of_groups(3_000, 219)
    assert [measure_tables(animation, frame, 0) >= expected for frame in (0, 1)] == [False, True]


@given(st.integers(0, 1 << 20), st.integers(0, 255), st.sampled_from([None, 0, 1]))
@example(25, 0x6D, None)
def test_damage_raises_nothing_but_an_image_error(at: int, value: int, transform: int | None) -> None:
    data = bytearray(hostile_boxes.webp_of_groups(4, 40, transform=transform))
    data[20 + at % min(len(data) - 20, 200)] = value
    for file in (bytes(data), bytes(data[: 12 + at % len(data)])):
        try:
            measure_tables(file, 0, 0)
        except ImageError:
            continue
        except IndexError:
            assert len(file) < 21
