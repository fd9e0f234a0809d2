"""A Keras model as a `Predictor`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline._keras import training_steps
from sightline._keras.loading import explain_load_error
from sightline._keras.process_state import seed_new_layers
from sightline.errors import ModelError
from sightline.inference.predictor import Outputs, OutputsPredictor, check_finite
from sightline.models import safetensors_file
from sightline.models.head import FEATURES, LOGITS, OUTPUTS, PROBABILITIES, TEMPERATURE_LAYER
from sightline.models.keras_file import open_keras_file, read_model
from sightline.preprocessing import PreprocessingSpec


class KerasPredictor(OutputsPredictor):
    """Predicts with a Keras model that maps uint8 pixels to a dict with ``probabilities``, in full float32.

    A copy or pickle contains the model as a ``.keras`` file, which is loaded in safe mode at the first call.
    """

    def __init__(self, model: Any, classes: Sequence[str], preprocess: PreprocessingSpec) -> None:
        self._model = model
        self._file: bytes | None = None
        self._compiled: Any = None  # the same layers in full precision; the model may be compiled in lower
        self.classes = tuple(classes)
        self.preprocess = preprocess

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_model": None, "_compiled": None, "_file": self._file or _to_bytes(self._model)}

    @property
    def device(self) -> Literal["cpu", "gpu"]:
        """Where Keras runs: on a GPU (or TPU) if its backend sees one."""
        return "gpu" if backend.has_accelerator() else "cpu"

    @property
    def model(self) -> Any:
        """The Keras model."""
        if self._model is None:
            assert self._file is not None
            self._model = _from_bytes(self._file)
            self._file = None  # no longer needed: the model can be saved again
        return self._model

    @classmethod
    def load(cls, path: Path, classes: Sequence[str], preprocess: PreprocessingSpec) -> KerasPredictor:
        """Load a ``.keras`` file in safe mode.

        Raises `ModelError` if it cannot be loaded, does not match `classes` or returns NaN for a random image.
        """
        return cls._check(load_model(path), path, classes, preprocess)

    @classmethod
    def decode(
        cls, weights: bytes, layers: bytes, classes: Sequence[str], preprocess: PreprocessingSpec
    ) -> KerasPredictor:
        """Build the model from the two files of `safetensors_file`; raises `ModelError` as `load` does."""
        model = safetensors_file.decode_model(weights, layers)
        return cls._check(model, Path(safetensors_file.LAYERS_FILE), classes, preprocess)

    @classmethod
    def _check(cls, model: Any, path: Path, classes: Sequence[str], preprocess: PreprocessingSpec) -> KerasPredictor:
        units = model.output[PROBABILITIES].shape[-1]
        if units != len(classes):
            raise ModelError(
                f"The model {path} has {units} outputs for the {len(classes)} classes of model.json: one of the "
                "two belongs to another run."
            )
        _check_interface(model, path, preprocess)
        predictor = cls(model, classes, preprocess)
        try:
            check_finite(predictor.outputs_uncompiled, preprocess)
        except ModelError as error:
            raise ModelError(f"The model {path} cannot be used: {error}. Train it again.") from error
        return predictor

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return probabilities, logits and features for uint8 pixels [N, H, W, C]."""
        with backend.full_precision():
            if self._compiled is None:
                self._compiled = backend.keras().Model(self.model.input, self.model.output)
            return _to_outputs(training_steps.predict_on_batch(self._compiled, pixels))

    def outputs_uncompiled(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return the same as `outputs` without compiling for this batch size, which is faster for a single call."""
        with backend.full_precision():
            raw_outputs = self.model(pixels, training=False)
        to_numpy = backend.keras().ops.convert_to_numpy
        return _to_outputs({name: to_numpy(value) for name, value in raw_outputs.items()})


def load_model(path: Path) -> Any:
    """Check a ``.keras`` file and load its Keras model in safe mode; raises `ModelError`."""
    try:
        with open_keras_file(path) as name, seed_new_layers(0):
            model = read_model(name)
        model.output[PROBABILITIES].shape[-1]
    except ModelError:
        raise
    except Exception as error:
        if backend.is_out_of_memory(error):
            raise
        raise ModelError(f"The model {path} cannot be loaded: {explain_load_error(error)}") from error
    return model


def _check_interface(model: Any, path: Path, preprocess: PreprocessingSpec) -> None:
    """Raise `ModelError` unless a model accepts images of `preprocess` and has the interface of Sightline networks."""
    shapes, names = [tuple(tensor.shape[1:]) for tensor in model.inputs], {layer.name for layer in model.layers}
    expected = preprocess.shape
    if shapes not in ([expected], [(None, None, expected[2])]):  # some networks accept images of any size
        raise ModelError(f"The model {path} takes inputs of the shapes {shapes}, but its images are {expected}.")
    if missing := sorted({LOGITS, FEATURES} - set(model.output) | {TEMPERATURE_LAYER} - names):
        raise ModelError(f"The model {path} has no {missing[0]}: it was not made by Sightline. Train it again.")


def _to_bytes(model: Any) -> bytes:
    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        return path.read_bytes()


def _from_bytes(file: bytes) -> Any:
    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        path = Path(folder, "model.keras")
        path.write_bytes(file)
        with seed_new_layers(0):
            return backend.keras().saving.load_model(path, compile=False, safe_mode=True)


def _to_outputs(raw_outputs: Mapping[str, Any]) -> Outputs:
    return Outputs(*(np.asarray(raw_outputs[name], np.float32) for name in OUTPUTS))
