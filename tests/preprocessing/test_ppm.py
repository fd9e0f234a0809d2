"""A PPM or PGM with any largest sample becomes the pixels that Pillow's own decoder gives."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL.PpmImagePlugin import PpmImageFile

from sightline.errors import ImageError
from sightline.preprocessing import PreprocessingSpec
from sightline.preprocessing.ppm import open_ppm


def make_file(magic: bytes, maximum: int) -> bytes:
    """Return an image of 9x7 pixels; some of its samples are above `maximum`."""
    samples = np.random.default_rng(maximum).integers(0, min(maximum * 2, 65536), (7, 9, 3 if magic == b"P6" else 1))
    samples.flat[:2] = 0, maximum
    dtype = "u1" if maximum < 256 else ">u2"
    return magic + b" 9 7 %d\n" % maximum + np.minimum(samples, np.iinfo(dtype).max).astype(dtype).tobytes()


@pytest.mark.parametrize("maximum", [1, 2, 7, 100, 254, 255, 256, 1000, 4095, 65534, 65535])
@pytest.mark.parametrize("magic", [b"P5", b"P6"])
def test_the_pixels_are_those_of_pillow(magic: bytes, maximum: int) -> None:
    data = make_file(magic, maximum)
    expected, image = PpmImageFile(io.BytesIO(data)), open_ppm(io.BytesIO(data))
    assert image.mode == expected.mode
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.parametrize("maximum", [254, 4095])
def test_a_file_that_is_cut_off_is_truncated(maximum: int) -> None:
    with pytest.raises(ImageError, match="truncated"):
        PreprocessingSpec(4, 4).decode(make_file(b"P5", maximum)[:-3])
