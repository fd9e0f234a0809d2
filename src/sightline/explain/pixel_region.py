"""The pixels whose class is explained, where each pixel has one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class PixelRegion:
    """The `pixels`, bool [H, W], that are predicted as class `class_index`: a `fraction` of those of the image.

    `probability` is the mean probability of the class over them, or over the image if there are none.
    """

    class_index: int
    pixels: NDArray[np.bool_]
    fraction: float
    probability: float

    @classmethod
    def find(
        cls, probabilities: NDArray[np.float32], visible: NDArray[np.bool_], class_index: int | None = None
    ) -> Self:
        """Return the pixels of a class, by default of that with the most pixels, in `probabilities` [H, W, K].

        `visible` bool [H, W] are the pixels that show the image.
        """
        predicted = probabilities.argmax(-1)
        if class_index is None:
            class_index = int(np.bincount(predicted[visible], minlength=probabilities.shape[-1]).argmax())
        pixels = visible & (predicted == class_index)
        averaged = pixels if pixels.any() else visible
        probability = float(probabilities[averaged, class_index].mean(dtype=np.float64))
        return cls(class_index, pixels, float(pixels.sum() / max(1, visible.sum())), probability)
