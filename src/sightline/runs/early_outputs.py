"""The outputs of an exported file for images whose features, the outputs of its first layers, are known."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.data.batches import iterate_slices, load_ahead
from sightline.data.types import Subset
from sightline.export.cut_file import cut_after
from sightline.inference.predictor import Outputs, Streams
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.inference.runtimes.onnx_sessions import create_session
from sightline.models.head import OUTPUTS
from sightline.training.early_features import EarlyFeatures

CHECKED_IMAGES = 4  # images per split on which the whole file also runs


@dataclass(frozen=True, slots=True)
class EarlyOutputs:
    """Computes the outputs of a file from `early`: `session` runs the part of the file after these features."""

    early: EarlyFeatures
    predictor: OnnxPredictor
    session: Any
    source: str

    @classmethod
    def open(cls, file: bytes, predictor: OnnxPredictor, early: EarlyFeatures | None) -> EarlyOutputs | None:
        """Return an object for `file`, which `predictor` runs; None if it does not begin with the layers of `early`."""
        rest = None if early is None else cut_after(file, early.file)
        if early is None or rest is None:
            return None
        return cls(early, predictor, create_session(rest.file, 1), rest.source)

    def find(self, samples: Subset) -> Outputs | None:
        """Return the outputs for all of `samples`; None without their features, or if the whole file's differ.

        Rows are computed in calls of the same size as for the whole file, since the last bits may depend on this size.
        """
        features = self.early.find(samples)
        if features is None:
            return None
        streams = self.predictor.streams or Streams(1, 1, 1)
        size = min(streams.rows, len(features))
        tasks = (partial(self._run, features[rows]) for rows in iterate_slices(len(features), size))
        with closing(load_ahead(tasks, streams.count, streams.count)) as results:
            outputs = Outputs(*map(np.concatenate, zip(*results, strict=True)))
        for at in range(max(1, min(CHECKED_IMAGES, len(samples)) // size)):
            rows = slice(size * at, size * (at + 1))
            whole = self.predictor.outputs(samples.take(rows))
            if any(not np.array_equal(a, b[rows]) for a, b in zip(whole.arrays, outputs.arrays, strict=True)):
                return None
        return outputs

    def _run(self, features: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return list(self.session.run(list(OUTPUTS), {self.source: np.ascontiguousarray(features)}))
