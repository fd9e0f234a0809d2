"""The protocol of every stored model: classes, preprocessing, and outputs for uint8 pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sightline.errors import ModelError, first_line, plural
from sightline.models.head import FEATURES, LOGITS, OUTPUTS, PROBABILITIES
from sightline.preprocessing import PreprocessingSpec
from sightline.seeding import make_generator

NOT_FINITE_REASON = "the model's answer is not a finite number"


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs for N images: `probabilities` and `logits` float32 [N, K], `features` float32 [N, F].

    A segmentation model has probabilities and logits for each pixel, [N, H, W, K].

    `probabilities` are the softmax of `logits`, which are already divided by the temperature; `features` are the input
    of the last dense layer.
    """

    probabilities: NDArray[np.float32]
    logits: NDArray[np.float32]
    features: NDArray[np.float32]

    @property
    def arrays(self) -> tuple[NDArray[np.float32], ...]:
        """The three arrays, in the order of the fields."""
        return self.probabilities, self.logits, self.features


@dataclass(frozen=True, slots=True)
class ModelOutputs:
    """The `outputs` of a model for N labeled images, and their `labels` [N, ...] in the encoding of the task.

    `groups` int64 [N] are the group numbers of the images, from 0; None if there are no groups or they are unknown.
    """

    outputs: Outputs
    labels: NDArray[Any]
    groups: NDArray[np.int64] | None = field(default=None, kw_only=True)

    @property
    def calibration(self) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """The logits float32 [M, K] to fit a temperature on, and their labels [M, ...]."""
        return self.outputs.logits, self.labels


@dataclass(frozen=True, slots=True)
class Streams:
    """How a model runs on several cores: `count` calls at a time, each of up to `rows` rows in `threads` threads.

    On two cores, ONNX Runtime processes 336 images/s of 256x256 with EfficientNet-Lite0 in two calls of one row, but
    264 in two calls of 8 rows, whose threads wait for each other after each layer. The results are identical.
    """

    count: int
    rows: int
    threads: int


class Predictor(Protocol):
    """A loaded model."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the probabilities."""

    @property
    def preprocess(self) -> PreprocessingSpec:
        """How an image becomes pixels."""

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 [N, K], rows summing to 1, for uint8 pixels [N, H, W, C]."""

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return probabilities, logits and features for uint8 pixels [N, H, W, C]."""


class OutputsPredictor(ABC):
    """A predictor that computes all outputs whenever it computes the probabilities."""

    @abstractmethod
    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return probabilities, logits and features for uint8 pixels [N, H, W, C]."""

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 [N, K], or [N, H, W, K] for masks, for uint8 pixels [N, H, W, C]."""
        return self.outputs(pixels).probabilities


class PicklablePredictor(OutputsPredictor):
    """A predictor that can be copied and pickled although its runtime session cannot.

    A copy contains what its session is created from. A subclass creates the session in the cached property `_session`;
    a copy creates its own at the first call. Like any pickle, a pickled model may run arbitrary code: unpickle only
    what you trust.
    """

    device: Literal["cpu", "gpu"] = "cpu"
    """The device that it runs on."""
    streams: Streams | None = None
    """The streams that it runs in; None if each call uses all cores."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_session"}


def find_streams(predictor: Predictor) -> Streams | None:
    """Return the streams that a predictor runs in; None if its calls use all cores, one after the other."""
    streams: Streams | None = getattr(predictor, "streams", None)
    return streams


def collect_outputs(runtime: str, run: Callable[[], Mapping[str, Any]], count: int, classes: int) -> Outputs:
    """Return the outputs that `run` returns by name for `count` images, as float32.

    Raises `ModelError`, naming the `runtime`, if `run` fails or an output is missing or has the wrong shape: only
    running a file of another format reveals what it computes.
    """
    try:
        raw_outputs = run()
        arrays = [np.array(raw_outputs[name], np.float32) for name in OUTPUTS]
    except KeyError as error:
        raise ModelError(f"it has no output {error}") from error
    except Exception as error:  # a dozen types come from C++
        raise ModelError(f"{runtime} cannot run the model on {plural(count, 'image')}: {first_line(error)}") from error
    shapes = {name: list(array.shape) for name, array in zip(OUTPUTS, arrays, strict=True)}
    if (
        not shapes[PROBABILITIES] == shapes[LOGITS]
        or [shapes[LOGITS][0], shapes[LOGITS][-1]] != [count, classes]
        or len(shapes[LOGITS]) not in (2, 4)  # one row per image, or one per pixel
        or [*shapes[FEATURES], 0][0] != count
        or (len(shapes[FEATURES]) != 2)
    ):
        raise ModelError(
            f"its outputs for {plural(count, 'image')} and {plural(classes, 'class', 'classes')} have shapes {shapes}"
        )
    return Outputs(*arrays)


def check_finite(compute_outputs: Callable[[NDArray[np.uint8]], Outputs], preprocess: PreprocessingSpec) -> Outputs:
    """Return the outputs for a random image of the size in `preprocess`; raises `ModelError` for NaN and infinity.

    Reference examples verify that a model is unchanged. But a model whose outputs were never finite has no reference
    examples, and neither has a lone file.
    """
    shape = (1, *preprocess.shape)
    outputs = compute_outputs(make_generator(0, "check", "image").integers(0, 256, shape, np.uint8))
    for name in OUTPUTS:
        values = getattr(outputs, name)
        if not np.isfinite(values).all():
            raise ModelError(
                f"for a random image, {int((~np.isfinite(values)).sum())} of its {values.size} {name} are NaN or "
                "infinite, so its weights are damaged or its training diverged"
            )
    return outputs


class FakePredictor:
    """A predictor for testing its callers: the class is the mean brightness of an image, in equal intervals."""

    def __init__(self, classes: Sequence[str], preprocess: PreprocessingSpec) -> None:
        self.classes = tuple(classes)
        self.preprocess = preprocess

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return 0.9 for the class ``floor(mean / 256 * K)``, and the rest divided among the others."""
        count = len(self.classes)
        class_indices = (pixels.reshape(len(pixels), -1).mean(1) / 256 * count).astype(int)
        out = np.full((len(pixels), count), 0.1 / max(count - 1, 1), np.float32)
        out[np.arange(len(pixels)), class_indices] = 0.9
        return out

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return the probabilities, their logarithms, and each channel's mean brightness in [0, 1] as features."""
        probabilities = self.probabilities(pixels)
        return Outputs(probabilities, np.log(probabilities), pixels.mean((1, 2), dtype=np.float32) / 255)
