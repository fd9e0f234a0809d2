"""Predict any number of images into a folder of Parquet files, in this process or on a Ray cluster."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from sightline import jsonio
from sightline.api.images import ImageLike, count_images, list_items
from sightline.api.loaded_model import LoadedModel
from sightline.api.options import Settings, to_assignments
from sightline.api.ray_options import resolve_engine
from sightline.callbacks import Callback
from sightline.distributed import ray_cluster
from sightline.errors import UsageError
from sightline.inference import ray_engine, stream
from sightline.inference.inputs import InputItem, parse_file_limits
from sightline.inference.prediction_files import ROWS, Predict, PredictionFiles, PredictionFolder, Shard, check_output
from sightline.inference.prediction_rows import PredictionFormat
from sightline.inference.runner import choose_batch_size
from sightline.inference.runtimes.onnx import OnnxPredictor


def write_predictions(
    model: LoadedModel,
    images: ImageLike | Iterable[ImageLike | InputItem],
    out: str | Path,
    callback: Callback,
    *,
    top: int,
    probabilities: bool,
    shard: str | None,
    rows_per_part: int | None,
    settings: Settings,
    engine: str,
    ray_address: str | None,
) -> PredictionFiles:
    """Write the predictions of a model for `images` to the folder `out`; see `ImageModel.write_predictions`."""
    ray_options = resolve_engine(engine, ray_address=ray_address)
    own_shard = Shard.parse(shard)
    preprocess = model.predictor.preprocess
    size, whole = choose_batch_size(preprocess.shape), choose_batch_size(preprocess.shape, is_memory_short=False)
    rows = ROWS if rows_per_part is None else rows_per_part
    form = _make_format(model, top, -(-rows // whole) * whole, probabilities)  # the same on each machine
    requested = len(form.classes) if probabilities or form.several_labels else form.top
    predict: Predict = partial(
        stream.predict, model.predictor, top=requested, batch_size=size, thresholds=model.thresholds,
        interpret=model.task.interpret,
    )  # fmt: skip
    with ExitStack() as stack:
        if ray_options is not None:
            if isinstance(model.predictor, OnnxPredictor) and model.predictor.device == "gpu":
                raise UsageError(
                    "The model runs on a GPU, but the workers of the engine ray use CPUs: load it on the CPU."
                )
            check_output(out)  # before a cluster is started
            limits = parse_file_limits(to_assignments(settings))
            ray = stack.enter_context(ray_cluster.connect(ray_options.address))
            predict = partial(
                ray_engine.predict, ray, predict_items=predict, batch_size=size, limits=limits,
                on_message=callback.on_message,
            )  # fmt: skip
        count = stack.enter_context(count_images(images, preprocess.channels, settings))
        items = list_items(images, preprocess.channels, settings, callback)
        return PredictionFolder(out, form).write(items, predict, own_shard, callback.on_progress, count)


def _make_format(model: LoadedModel, top: int, rows: int, probabilities: bool) -> PredictionFormat:  # noqa: FBT001
    """Return the format of the files of predictions; raises `UsageError` for numbers below 1."""
    if top < 1 or rows < 1:
        raise UsageError(f"top and rows_per_part must be at least 1, not {top} and {rows}.")
    thresholds = None if model.thresholds is None else model.thresholds.to_stored()
    identity = [type(model.predictor).__name__, getattr(model.predictor, "sha256", None), thresholds]
    digest = hashlib.sha256(jsonio.dumps([model.feature_model_id, *identity], sort_keys=True).encode())
    has_several, are_masks = model.task.targets.allows_several, model.task.targets.are_masks
    classes = model.predictor.classes
    return PredictionFormat(
        f"{model.feature_model_id.rpartition('@')[0]}@{digest.hexdigest()}", classes, rows, min(top, len(classes)),
        probabilities, decisions=model.thresholds is not None and model.thresholds.decides,
        several_labels=has_several, sets=() if model.thresholds is None else model.thresholds.set_fields,
        quality=are_masks, nodes=model.task.targets.are_paths, grades=model.task.targets.are_ordered,
    )  # fmt: skip
