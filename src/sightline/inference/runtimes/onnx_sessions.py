"""ONNX Runtime sessions of a file on the CPU: one for single images, one that several threads call concurrently."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import process
from sightline._keras import imports
from sightline.data.batches import iterate_slices, load_ahead
from sightline.errors import ModelError, first_line
from sightline.inference.predictor import Streams

MAX_STREAMED_BYTES = 32 << 20  # streams are no faster for larger files, and a second session takes memory


def create_session(model: bytes, threads: int = 0) -> Any:
    """Create an ONNX Runtime session for a file on the CPU; `threads` 0 means one per core.

    Raises `ModelError` for a file that cannot be run.
    """
    onnxruntime = imports.import_onnx_runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or process.count_cores()
    # threads that spin while they wait block cores needed for decoding: 30% of the response time of a busy server
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"ONNX Runtime cannot load it: {first_line(error)}") from error


class StreamedSession:
    """Runs a file with up to `streams.rows` rows per call of the runtime, and up to `streams.count` calls at a time.

    A single call uses all threads, so that a single image takes the least time. Concurrent calls, and the rows of a
    larger call, run in sessions of `streams.threads` threads, which do not wait for each other after each layer: on two
    cores, MobileNetV2 0.35 classifies 1,134 images/s of 288x288 in calls of one row, 678 in two concurrent calls of 8
    rows that share their threads, and 581 in one call of 32 rows. The results are identical bit for bit.
    """

    def __init__(self, model: bytes, streams: Streams, threads: int) -> None:
        """`threads` is the number of threads for a single call; 0 means one per core."""
        self._model, self._streams = model, streams
        self._alone = create_session(model, threads)
        has_one = process.is_memory_short() or streams.threads == (threads or process.count_cores())
        self._beside_others = self._alone if has_one else None  # created when first needed
        self._creating = threading.Lock()
        self._lock, self._running = threading.Lock(), 0

    def _find_session(self) -> Any:
        """Return the session for concurrent calls."""
        with self._creating:
            if self._beside_others is None:
                self._beside_others = create_session(self._model, self._streams.threads)
        return self._beside_others

    def get_inputs(self) -> Any:
        """Return the inputs of the file."""
        return self._alone.get_inputs()

    def get_outputs(self) -> Any:
        """Return the outputs of the file."""
        return self._alone.get_outputs()

    def run(self, names: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the named outputs for inputs [N, ...]; raises the errors of ONNX Runtime."""
        count = min(map(len, inputs.values()))
        with self._count_call() as is_alone:
            if count <= self._streams.rows:
                session = self._alone if is_alone else self._find_session()
                return list(session.run(list(names), dict(inputs)))
            return self._run_in_streams(list(names), inputs, count, is_alone=is_alone)

    def _run_in_streams(
        self, names: list[str], inputs: Mapping[str, NDArray[Any]], count: int, *, is_alone: bool
    ) -> list[NDArray[Any]]:
        session, threads = self._find_session(), self._streams.count

        def run_rows(rows: slice) -> list[NDArray[Any]]:
            return list(session.run(names, {name: values[rows] for name, values in inputs.items()}))

        tasks = [partial(run_rows, rows) for rows in iterate_slices(count, self._streams.rows)]
        if is_alone:
            with closing(load_ahead(tasks, threads, threads)) as loaded:
                results = list(loaded)
        else:  # the threads of the other calls keep the cores busy
            results = [task() for task in tasks]
        return [np.concatenate(arrays) for arrays in zip(*results, strict=True)]

    @contextmanager
    def _count_call(self) -> Iterator[bool]:
        """Yield whether no other call is running."""
        with self._lock:
            is_alone, self._running = not self._running, self._running + 1
        try:
            yield is_alone
        finally:
            with self._lock:
                self._running -= 1
