"""LiteRT's ``model.tflite`` as a `Predictor`."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import process
from sightline._keras import imports
from sightline.errors import ModelError, first_line, require
from sightline.export.tensorflow import LITERT
from sightline.inference.predictor import Outputs, PicklablePredictor, collect_outputs
from sightline.inference.safety.litert_model import check_interpreter
from sightline.preprocessing import PreprocessingSpec


class LiteRtPredictor(PicklablePredictor):
    """Predicts with an exported model, on the CPU."""

    def __init__(
        self, files: Mapping[str, bytes], classes: Sequence[str], preprocess: PreprocessingSpec, threads: int
    ) -> None:
        """`files` contains ``model.tflite``; `threads` 0 means one per core.

        Raises `ModelError` for a file that cannot be run.
        """
        self.classes = tuple(classes)
        self.preprocess = preprocess
        self._threads = threads
        self._file = files[LITERT]
        _ = self._session  # raises errors early

    @cached_property
    def _session(self) -> tuple[Any, threading.Lock]:
        litert = require("ai_edge_litert.interpreter", "The format litert")
        threads = self._threads or process.count_cores()
        try:
            with imports.suppress_stderr():  # C++ code logs the delegate that it creates
                interpreter = litert.Interpreter(model_content=self._file, num_threads=threads)
                check_interpreter(interpreter)
                interpreter.allocate_tensors()
                return interpreter.get_signature_runner(), threading.Lock()
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"LiteRT cannot load it: {first_line(error)}") from error

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return probabilities, logits and features for uint8 pixels [N, H, W, C]; raises `ModelError`."""
        run, lock = self._session
        with lock:  # an interpreter has one set of tensors
            return collect_outputs(
                "LiteRT", lambda: run(pixels=np.ascontiguousarray(pixels)), len(pixels), len(self.classes)
            )
