"""`load`: a classifier from a run, a bundle or an exported file, or a message that describes what else the path is."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Literal, get_args

from sightline import _io, backend
from sightline.api.argument_types import check_types
from sightline.api.classifier import Classifier
from sightline.api.loaded_model import load_keras_predictor
from sightline.callbacks import Callback
from sightline.data.sources import named
from sightline.data.sources.filenames import is_image_name
from sightline.errors import ModelError, UsageError, suggest
from sightline.escaping import quote_path
from sightline.inference import bundle, exported_folder
from sightline.inference.device_choice import Device
from sightline.inference.predictor import Predictor
from sightline.progress import show_progress
from sightline.runs.directory import RunDirectory
from sightline.runs.paths import is_run

Engine = Literal["onnx", "keras"]
IMAGENET = "imagenet"  # the name of the pretrained classifier
MODEL_KINDS = (
    "a run (the folder that `sightline train` wrote), a bundle (a folder, .zip or .onnx file), a folder that "
    "`sightline export` wrote, or imagenet, a pretrained classifier for 1,000 classes"
)
MAX_MODELS = 5  # models listed in a message


@check_types
def load(
    path: str | Path,
    *,
    engine: Engine = "onnx",
    threads: int = 0,
    device: Device | None = None,
    progress: bool = True,
    callback: Callback | None = None,
) -> Classifier:
    """Load a classifier from a run, a bundle or an exported file, and verify its files.

    Args:
        path: A run; a bundle (a folder, ``.zip`` or ``.onnx`` file); or a folder that `export` wrote in another
            format. ``imagenet`` is a classifier for the 1,000 classes of ImageNet that needs no training:
            EfficientNet-Lite0 with its published weights, a bundle that is built in the cache on first use.
        engine: ``onnx`` predicts with the bundle of a run, in ONNX Runtime, if it has one. ``keras`` predicts with
            its Keras model, which has gradients.
        threads: The number of threads for a bundle or an exported file; 0 means one for each core.
        device: ``gpu`` runs a bundle on a GPU, which needs the package ``onnxruntime-gpu`` in place of ``onnxruntime``.
            Its probabilities are first compared with those of the CPU, within the limits of an export. ``auto`` does so
            if there is a GPU and a batch takes no longer on it, and uses the CPU otherwise. By default, a bundle runs
            on the CPU, and a Keras model where Keras computes.
        progress: Whether to report slow steps on standard error: building ``imagenet``, and loading a Keras model.
        callback: Receives these messages in place of the display.

    Returns:
        The classifier.

    Raises:
        ModelError: If `path` is not a model, or was damaged.
        MissingExtraError: If the runtime of its format is not installed.
        UsageError: If there is no such engine or no such device for the model, or `threads` is negative.

    Warning:
        Operations of a SavedModel or a LiteRT file that do more than compute are refused, but the memory and time that
        such a file takes are not limited: load such files only from people you trust.
    """
    if engine not in get_args(Engine):
        raise UsageError(f"There is no engine {engine!r}.{suggest(engine, get_args(Engine))}")
    if device not in (None, *get_args(Device)):
        raise UsageError(f"There is no device {device!r}.{suggest(str(device), get_args(Device))}")
    if threads < 0:
        raise UsageError(f"threads is a number of threads, or 0 for one for each core, not {threads}.")
    path, bundle_device = _io.expand_home(path), device or "cpu"
    if str(path) == IMAGENET and not path.exists():
        from sightline.api import imagenet  # imports code that builds networks, which no other model needs

        with show_progress(progress, callback) as display:
            path, loaded_bundle, predictor = imagenet.load_or_build(threads, bundle_device, display.on_message)
        return _make_bundle_classifier(path, loaded_bundle, predictor, engine)
    if (folder := exported_folder.find(path)) is not None:
        if engine == "keras":
            raise ModelError(f"{folder} contains no Keras model: give the run that it was exported from.")
        manifest, runner = exported_folder.load(folder, threads)
        _check_device(runner, device, folder)
        return Classifier(runner, manifest=manifest, path=folder)
    if bundle.is_bundle(path):
        return _make_bundle_classifier(path, *bundle.load(path, threads, bundle_device), engine)
    if not is_run(path):
        raise ModelError(explain_not_a_model(path))
    run = RunDirectory.open(path)
    if engine == "onnx" and (folder := run.bundle) is not None:
        loaded_bundle, predictor = bundle.load(folder, threads, bundle_device)
        return Classifier(predictor, run, loaded_bundle.manifest, run.path)
    backend.tune_malloc()
    with show_progress(progress, callback) as display:
        keras_predictor = load_keras_predictor(run, display.on_message)
    _check_device(keras_predictor, device, path)
    return Classifier(keras_predictor, run, path=run.path)


def _check_device(predictor: Predictor, device: Device | None, path: Path) -> None:
    """Raise `UsageError` if a runtime that chooses its own device does not compute on `device`."""
    actual = getattr(predictor, "device", "cpu")  # optional for exporters of other packages
    if device == "gpu" and actual == "cpu":
        raise UsageError(
            f"{path} runs on the CPU here: a GPU runs only bundles (with onnxruntime-gpu) and Keras models (if the "
            "Keras backend sees it)."
        )
    if device == "cpu" and actual == "gpu":
        raise UsageError(f"{path} runs on the GPU that its framework sees: set CUDA_VISIBLE_DEVICES=-1 to hide it.")


def _make_bundle_classifier(
    path: Path, loaded_bundle: bundle.Bundle, predictor: Predictor, engine: Engine
) -> Classifier:
    if engine == "keras":
        raise ModelError(f"{path} contains no Keras model: give the run that it belongs to.")
    return Classifier(predictor, manifest=loaded_bundle.manifest, path=path)


def explain_not_a_model(path: Path) -> str:
    """Return the message for a path that is not a model: what it is, and what to use instead."""
    if not path.exists():
        if str(path).startswith("hf:"):
            return f"{path} is a model on the Hugging Face Hub: `sightline pull {path} FOLDER` downloads it."
        if named.is_named(str(path)):
            return f"{path} is a data set, not a model: `sightline train {path}` trains a model on it."
        return f"There is no model {path}: no such file or folder exists. Expected {MODEL_KINDS}."
    return (_explain_folder(path) if path.is_dir() else _explain_file(path)) or (
        f"{path} is not a model: expected {MODEL_KINDS}."
    )


def _explain_folder(path: Path) -> str | None:
    if models := _models_in(path):
        remaining = f" (and {len(models) - MAX_MODELS} more)" if len(models) > MAX_MODELS else ""
        return (
            f"{path} is not a model but contains some: use "
            f"{' or '.join(map(str, islice(models, MAX_MODELS)))}{remaining}."
        )
    if holds_images(path):
        return (
            f"{path} is a folder of images, not a model: `sightline train {quote_path(path)}` trains a model on it, "
            f"and `sightline doctor {quote_path(path)}` checks it."
        )
    return None


def _explain_file(path: Path) -> str | None:
    if is_model(path.parent):
        return f"{path} is a file of the model {path.parent}: give that folder."
    if is_image_name(path.name):
        return f"{path} is an image, not a model: the model comes first, then the images."
    return None


def _models_in(folder: Path) -> list[Path]:
    try:
        return [path for path in sorted(folder.iterdir()) if is_model(path)]
    except OSError:  # not readable
        return []


def holds_images(folder: Path) -> bool:
    """Return whether images are in a folder or two levels below, as in ``train/cat``."""
    try:
        return any(
            is_image_name(p.name) for pattern in ("*", "*/*", "*/*/*") for p in islice(folder.glob(pattern), 1000)
        )
    except OSError:  # not readable
        return False


def is_model(path: Path) -> bool:
    """Return whether `path` looks like a run, a bundle or an exported folder; its content is not verified."""
    return is_run(path) or bundle.is_bundle(path) or exported_folder.find(path) == path
