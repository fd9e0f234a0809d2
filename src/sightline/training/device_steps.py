"""Run training steps on images stored on the device, without waiting for each result (JAX)."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import metrics
from sightline._keras import training_steps
from sightline.distributed import devices
from sightline.inference import device_images
from sightline.training.steps import OnResult, StepInputs, StepRunner

READ_SECONDS = 0.25  # device time between two readings of the losses; twice as much may be in flight
MAX_STEPS_BETWEEN = 64
CHUNK_BYTES = 256 << 20  # per chunk of steps: targets, parameters, and images that do not fit on the device


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Consecutive steps of an epoch, starting at step `first`, as arrays on the device.

    `arrays` have a row for each step: the positions of its images in `images`, the targets, weights and augmentation
    parameters.
    """

    first: int
    arrays: tuple[Any, ...]
    images: Any


class DeviceRunner(StepRunner):
    """Runs steps that gather their images on the device (JAX), and reads their losses every `READ_SECONDS`.

    If all images fit there (`device_images`), they are copied once; otherwise a second thread copies the images of the
    next chunk of steps while a chunk is in use. The step is Keras' own `train_step`. Its state, learning rates, targets
    and parameters stay on the device, so that starting a step copies nothing.
    """

    def __init__(self, model: Any, inputs: StepInputs) -> None:
        self._model, self._inputs = model, inputs
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[tuple[int, int], Future[_Chunk]] | None = None
        self._images: Any = None
        self._is_resident = False
        self._state: Any = None
        self._compiled: Any = None
        self._between = 1  # steps between two readings
        self._chunk_steps = 0
        self._epoch_data = lru_cache(maxsize=2)(self._make_epoch_data)  # the current epoch and the next one

    def set_train_step(self, train_step: devices.TrainStep) -> None:
        """See `StepRunner`; the step is always Keras' own, and is only compiled again."""
        del train_step
        self._compiled = None

    def begin_epoch(
        self, epoch: int, start: int, rates: NDArray[np.float64], on_result: OnResult, *, has_next: bool
    ) -> None:
        """See `StepRunner`."""
        import jax

        self._epoch, self._has_next, self._on_result = epoch, has_next, on_result
        self._started = self._reported = start
        self._mark: tuple[Any, int] | None = None
        self._marked_at, self._read_at = start, time.perf_counter()
        if not self._chunk_steps:
            self._place_images()
        steps = self._inputs.steps
        self._rates = jax.device_put(rates.astype(np.float32))
        self._progress = jax.device_put((np.int32(start), np.zeros((steps, 2), np.float32)))
        self._chunk: _Chunk | None = None

    def run_step(self) -> None:
        """See `StepRunner`."""
        number = self._started // self._chunk_steps
        if self._chunk is None or self._chunk.first != number * self._chunk_steps:
            self._chunk = self._take_chunk(number)
        if self._compiled is None:
            self._compiled = self._compile()
        if self._state is None:
            self._state = devices.read_values(self._variables)
        first = np.int32(self._chunk.first)
        self._state, self._progress = self._compiled(
            self._state, self._progress, self._rates, first, self._chunk.arrays, self._chunk.images
        )
        self._started += 1
        if self._started - self._marked_at >= self._between:
            self._read_marked()
            logs = self._progress[1]
            logs.copy_to_host_async()
            self._mark, self._marked_at = (logs, self._started), self._started

    def catch_up(self) -> None:
        """See `StepRunner`."""
        if self._state is None:
            return
        self._mark = (self._progress[1], self._started)
        self._read_marked()
        self._store_state()

    def end_epoch(self) -> None:
        """See `StepRunner`."""
        self._mark = None
        self._store_state()
        self._chunk = None

    def close(self) -> None:
        """Stop the thread, and release the images."""
        self._pool.shutdown(cancel_futures=True)
        self._next = self._images = self._chunk = None

    @property
    def _variables(self) -> tuple[Any, ...]:
        model = self._model
        return model.trainable_variables, model.non_trainable_variables, model.optimizer.variables

    def _store_state(self) -> None:
        """Write the state back to the variables; the next step, which donates its buffers, must read it from there."""
        state, self._state = self._state, None
        if state is not None:
            devices.assign_values(self._variables, state)

    def _read_marked(self) -> None:
        """Wait for the step where the last mark was set, and report the results up to it.

        Later steps keep the device busy in the meantime. The number of steps between two readings is adapted to their
        duration, so that only few slow steps are in flight.
        """
        if self._mark is None:
            return
        (logs, stop), self._mark = self._mark, None
        results = np.array(logs)[self._reported : stop]
        seconds = time.perf_counter() - self._read_at
        self._read_at += seconds
        per_step = max(seconds / max(len(results), 1), 1e-9)
        self._between = int(min(MAX_STEPS_BETWEEN, max(1, READ_SECONDS / per_step)))
        for loss, accuracy in results:
            self._reported += 1
            self._on_result(metrics.nonnegative_loss(float(loss)), float(accuracy))

    def _place_images(self) -> None:
        """Copy the images to the device if they fit, and choose the number of steps in a chunk."""
        inputs = self._inputs
        self._is_resident = device_images.fit_on_device(inputs.train)
        rows, params = self._epoch_data(self._epoch)
        step_params = None if params is None else params[rows[0]]
        targets = inputs.objective.compute_targets(rows[0], self._epoch, step_params)
        step_bytes = targets.nbytes + 8 * inputs.batch_size + (0 if step_params is None else step_params.nbytes)
        if self._is_resident:
            self._images = device_images.copy_to_device(inputs.train)
        else:
            step_bytes += inputs.train.pixels[:1].nbytes * inputs.batch_size
        self._chunk_steps = max(1, min(inputs.steps, CHUNK_BYTES // step_bytes))

    def _make_epoch_data(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.float32] | None]:
        return self._inputs.order_rows(epoch), self._inputs.sample_params(epoch)

    def _take_chunk(self, number: int) -> _Chunk:
        """Return chunk `number` of the epoch, and start preparing the next one."""
        key = (self._epoch, number)
        if self._next is not None and self._next[0] == key:
            chunk = self._next[1].result()
        else:
            chunk = self._pool.submit(partial(self._make_chunk, *key)).result()
        following: tuple[int, int] | None = (self._epoch, number + 1)
        if (number + 1) * self._chunk_steps >= self._inputs.steps:
            following = (self._epoch + 1, 0) if self._has_next else None
        self._next = following and (following, self._pool.submit(partial(self._make_chunk, *following)))
        return chunk

    def _make_chunk(self, epoch: int, number: int) -> _Chunk:
        """Copy the data of a chunk to the device; the last chunk is padded to full size with steps that never run."""
        import jax

        inputs, size = self._inputs, self._chunk_steps
        all_rows, params = self._epoch_data(epoch)
        numbers = np.minimum(np.arange(number * size, (number + 1) * size), inputs.steps - 1)
        rows = all_rows[numbers]
        step_params = None if params is None else params[rows]
        targets = np.stack(
            [
                inputs.objective.compute_targets(each, epoch, None if step_params is None else step_params[index])
                for index, each in enumerate(rows)
            ]
        )
        weights = np.stack([inputs.make_weights(int(step)) for step in numbers])
        if self._is_resident:
            slots, images = rows.astype(np.int32), self._images
        else:
            slots = np.arange(rows.size, dtype=np.int32).reshape(rows.shape)
            images = jax.device_put(inputs.train.take(rows.ravel()))
        arrays = (slots, targets, weights) if step_params is None else (slots, targets, weights, step_params)
        return _Chunk(number * size, jax.device_put(arrays), images)

    def _compile(self) -> Any:
        """Compile a step; it donates its state, but not the progress (the number of steps and their losses)."""
        import jax

        assert self._chunk is not None
        _, targets, weights, *params = (np.zeros(array.shape[1:], array.dtype) for array in self._chunk.arrays)
        pixels = np.zeros((len(weights), *self._inputs.train.pixels.shape[1:]), self._inputs.train.pixels.dtype)
        training_steps.build_for_batch(self._model, ([pixels, *params] if params else pixels, targets, weights))
        rate_index = training_steps.find_rate_index(self._model.optimizer)

        def step(state: Any, progress: Any, rates: Any, first: Any, arrays: Any, images: Any) -> Any:
            number, logs = progress
            at_step = partial(jax.lax.dynamic_index_in_dim, keepdims=False)
            slots, targets, weights, *params = (at_step(array, number - first) for array in arrays)
            targets, weights, params = jax.lax.optimization_barrier((targets, weights, params))
            pixels = device_images.gather_rows(images, slots)
            state[2][rate_index] = at_step(rates, number)
            metrics_values = [jax.numpy.zeros(v.shape, v.dtype) for v in self._model.metrics_variables]
            data = ([pixels, *params] if params else pixels, targets, weights)
            step_logs, new_state = self._model.train_step((*state, metrics_values), data)
            result = jax.numpy.stack([step_logs["loss"], step_logs["categorical_accuracy"]])
            return new_state[:3], (number + 1, logs.at[number].set(result.astype(logs.dtype)))

        return jax.jit(step, donate_argnums=0)
