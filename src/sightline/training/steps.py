"""Run the steps of an epoch: the inputs of a step, and the runner that passes each batch from the host."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import metrics
from sightline.data.batches import Batch, epoch_order, iterate_batches
from sightline.data.types import Subset
from sightline.distributed import devices
from sightline.tasks.protocol import Objective

OnResult = Callable[[float, float], None]
"""Called with the mean loss and accuracy of each step, in order; it may raise to end the epoch."""


@dataclass(frozen=True, slots=True)
class StepInputs:
    """The inputs of a stage's steps: the images, their `objective`, the seed of their order, and the batch size."""

    train: Subset
    objective: Objective
    seed: int
    batch_size: int

    @property
    def steps(self) -> int:
        """The number of steps in an epoch."""
        return math.ceil(len(self.train) / self.batch_size)

    def order_rows(self, epoch: int) -> NDArray[np.int64]:
        """Return the positions of the images of each step, int64 [steps, batch size].

        The last batch is padded with the first rows, at weight 0, since another batch size would need compiling again
        (12 s for MobileNetV2 on two cores).
        """
        order = epoch_order(len(self.train), self.seed, epoch)
        return np.resize(order, self.steps * self.batch_size).reshape(self.steps, self.batch_size)

    def sample_params(self, epoch: int) -> NDArray[np.float32] | None:
        """Return the augmentation parameters of each image in an epoch, float32 [N, D]; None without augmentation."""
        return None if self.objective.augmentation is None else self.objective.sample_params(epoch)

    def count_real(self, step: int) -> int:
        """Return the number of images in a step, excluding padding."""
        return min(self.batch_size, len(self.train) - step * self.batch_size)

    def make_weights(self, step: int) -> NDArray[np.float32]:
        """Return the sample weights of a step: float32 [batch size].

        Padding has weight 0 in loss and gradient, but counts in layers that normalize over the batch.
        """
        num_real = self.count_real(step)
        weights = np.zeros(self.batch_size, np.float32)
        weights[:num_real] = self.batch_size / num_real
        return weights


class StepRunner(ABC):
    """Runs the steps of a stage's epochs in order: one `run_step` each, between `begin_epoch` and `end_epoch`.

    Results may be reported later than their step, but in order; after `catch_up`, all have been reported, and the
    variables of the model and its optimizer have their values after the last step.
    """

    @abstractmethod
    def begin_epoch(
        self, epoch: int, start: int, rates: NDArray[np.float64], on_result: OnResult, *, has_next: bool
    ) -> None:
        """Begin at step `start` of `epoch` (1-based), with the learning rates `rates` [steps].

        `has_next` is whether another epoch of the stage is planned, so that its data can be prepared.
        """

    @abstractmethod
    def run_step(self) -> None:
        """Run the next step, or start running it."""

    @abstractmethod
    def catch_up(self) -> None:
        """Wait for the started steps, and report their results; does nothing outside an epoch."""

    @abstractmethod
    def end_epoch(self) -> None:
        """Store the weights in the model's variables, even after an exception; unreported results are dropped."""

    @abstractmethod
    def set_train_step(self, train_step: devices.TrainStep) -> None:
        """Use the step of a model that was compiled again."""

    @abstractmethod
    def close(self) -> None:
        """Release threads and memory."""


class HostRunner(StepRunner):
    """Passes each batch from the host to `train_step`, and waits for its result.

    Meanwhile, a background thread gathers the next batch.
    """

    def __init__(self, model: Any, train_step: devices.TrainStep, inputs: StepInputs) -> None:
        self._model, self._train_step, self._inputs = model, train_step, inputs
        self._batches: Generator[Batch, None, None] | None = None

    def set_train_step(self, train_step: devices.TrainStep) -> None:
        """See `StepRunner`."""
        self._train_step = train_step

    def begin_epoch(
        self, epoch: int, start: int, rates: NDArray[np.float64], on_result: OnResult, *, has_next: bool
    ) -> None:
        """See `StepRunner`."""
        del has_next
        inputs = self._inputs
        self._epoch, self._step, self._rates, self._on_result = epoch, start, rates, on_result
        self._rows, self._params = inputs.order_rows(epoch), inputs.sample_params(epoch)
        self._local_rows = devices.get_local_rows(inputs.batch_size)
        local = self._rows[:, self._local_rows]
        self._batches = iterate_batches(inputs.train, local.shape[1], local.ravel(), start)

    def run_step(self) -> None:
        """See `StepRunner`."""
        assert self._batches is not None
        pixels = next(self._batches).pixels
        self._model.optimizer.learning_rate = self._rates[self._step]
        loss, accuracy = self._run(pixels)
        self._step += 1
        self._on_result(loss, accuracy)

    def _run(self, pixels: NDArray[Any]) -> tuple[float, float]:
        rows = self._rows[self._step]
        params = None if self._params is None else self._params[rows]
        inputs: Any = pixels if params is None else [pixels, params[self._local_rows]]
        targets = self._inputs.objective.compute_targets(rows, self._epoch, params)
        weights = self._inputs.make_weights(self._step)
        logs = self._train_step(inputs, targets[self._local_rows], weights[self._local_rows])
        return metrics.nonnegative_loss(float(logs["loss"])), float(logs["categorical_accuracy"])

    def catch_up(self) -> None:
        """Do nothing: every result has been reported."""

    def end_epoch(self) -> None:
        """Stop the background thread."""
        if self._batches is not None:
            self._batches.close()
        self._batches = None

    def close(self) -> None:
        """Do nothing: `end_epoch` stops the thread."""
