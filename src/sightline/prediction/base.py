"""What every stored model offers: classes, a picture contract, and probabilities of uint8 pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sightline.errors import ModelError
from sightline.preprocess import Preprocess
from sightline.randomness import generator

NOT_FINITE = "the model's answer is not a finite number"


@dataclass(frozen=True, slots=True)
class Outputs:
    """All that a network says of N pictures: `probabilities` and `logits` float32 [N, K], `features` float32 [N, F].

    `probabilities` are the softmax of `logits`, which are after the division by the temperature; `features` are what
    the last dense layer sees.
    """

    probabilities: NDArray[np.float32]
    logits: NDArray[np.float32]
    features: NDArray[np.float32]


class Predictor(Protocol):
    """A loaded model."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the probabilities."""

    @property
    def preprocess(self) -> Preprocess:
        """How a picture becomes pixels."""

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 [N, K], rows summing to 1, for uint8 pixels [N, H, W, C]."""

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return probabilities, logits and features for uint8 pixels [N, H, W, C]."""


class Portable:
    """A predictor that can be copied and pickled although the session of its runtime cannot.

    What the session is opened from goes into the copy; the session, which a subclass opens in the cached property
    `_session`, is opened anew when the copy is first asked. Like any pickle, one of a model may run what its maker put
    into it: unpickle only what you trust.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_session"}


PIXELS = 8 * 224 * 224  # of the pictures in a batch: what lies between layers is a hundred times as large
MOST = 128


def suitable_batch_size(preprocess: Preprocess) -> int:
    """Return how many pictures to give a predictor at once: 8 of 224x224, 128 of 32x32.

    On two cores ONNX Runtime names 106 and 102 pictures/s of 224x224 with MobileNetV2 in batches of 8 and of 32, but
    holds 220 and 520 MB; 2,103 and 3,325 of 32x32 with `cifar10-deep` in batches of 8 and of 128.
    """
    return max(1, min(MOST, PIXELS // (preprocess.height * preprocess.width)))


def filled(call: Callable[[Any], Any], rows: NDArray[Any], size: int) -> Any:
    """Return ``call(rows)`` for at most `size` rows, made with exactly `size`: the last is repeated as needed.

    A compiled model is compiled anew for each new number of rows, 1.2 s for MobileNetV2 on two cores: more than a whole
    batch of 32 takes.
    """
    missing = size - len(rows)
    if missing <= 0:
        return call(rows)
    return call(np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]))[: len(rows)]


def check_finite(ask: Callable[[NDArray[np.uint8]], Outputs], preprocess: Preprocess) -> None:
    """Raise `ModelError` if `ask` answers a random image with NaN or infinity; `preprocess` says how large it is.

    Reference examples show that a model still is what it was; one that never gave a number has none, and a file alone
    carries none.
    """
    shape = (1, preprocess.height, preprocess.width, preprocess.channels)
    answer = ask(generator(0, "check", "image").integers(0, 256, shape, np.uint8))
    for name in ("probabilities", "logits", "features"):
        values = getattr(answer, name)
        if not np.isfinite(values).all():
            raise ModelError(
                f"for a random image, {int((~np.isfinite(values)).sum())} of its {values.size} {name} are NaN or "
                "infinite, so its weights are damaged or its training diverged"
            )


class FakePredictor:
    """A predictor for tests of what stands around one: its answer is a picture's mean brightness, spread evenly."""

    def __init__(self, classes: Sequence[str], preprocess: Preprocess) -> None:
        self.classes = tuple(classes)
        self.preprocess = preprocess

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Give 0.9 to class number ``floor(mean / 256 * K)``, the rest shared by the others."""
        count = len(self.classes)
        number = (pixels.reshape(len(pixels), -1).mean(1) / 256 * count).astype(int)
        out = np.full((len(pixels), count), 0.1 / max(count - 1, 1), np.float32)
        out[np.arange(len(pixels)), number] = 0.9
        return out

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return the probabilities, their logarithms, and each channel's mean brightness in [0, 1] as features."""
        found = self.probabilities(pixels)
        return Outputs(found, np.log(found), pixels.mean((1, 2), dtype=np.float32) / 255)
