"""An existing run directory: is it a complete run of the request, and what was its result?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

from sightline import jsonio
from sightline.config import RunConfig, flatten_config
from sightline.data.recorded_images import describe_difference
from sightline.errors import OutputError
from sightline.escaping import quote_path
from sightline.runs.directory import RunDirectory
from sightline.runs.resolve import RunInputs
from sightline.training.result import TrainResult

IGNORED_SETTINGS = {  # settings that do not affect the trained weights
    "evaluation.positive_class",
    *("device.threads", "device.deterministic", "data.cache", "data.allow_findings", "train.track"),
    *("train.checkpoint_minutes", "train.checkpoint_steps", "train.max_checkpoints", "train.keep_last_checkpoint"),
}
DISTRIBUTION_SETTINGS = {  # also ignored unless the learning rate scales with them
    "device.num_devices",
    "device.num_hosts",
}
AUTO_SETTINGS = {  # auto matches whatever was chosen for it
    *("device.backend", "device.feature_runtime", "model.weights", "input.value_range", "train.precision"),
}
AUTO_VALUES = {"auto", "device"}


def check_same_run(run: RunDirectory, inputs: RunInputs) -> None:
    """Raise `OutputError` unless `run` is complete and has the settings and images of `inputs`."""
    config, index = inputs.config, inputs.index
    path, status = run.path, run.info.get("status")
    if status != "complete":
        difference_text = next(diff_settings(run.config, config), None) if run.has_config else None
        advice = (
            f"its settings differ ({difference_text}), so choose"
            if difference_text
            else f"`sightline resume {quote_path(path)}` continues it; or choose"
        )
        raise OutputError(
            f"{path} contains a run that is {status}, not complete: {advice} another folder with --out, "
            "or retrain with --force."
        )
    changed_settings = list(diff_settings(run.config, config))
    if changed_settings:
        has_more_epochs = config.train.epochs > len(run.read_history())
        only_epochs_differ = has_more_epochs and all(text.startswith("train.epochs ") for text in changed_settings)
        extend_hint = (
            f"`sightline resume {quote_path(path)} --epochs {config.train.epochs}` extends it; or "
            if only_epochs_differ
            else ""
        )
        raise OutputError(
            f"{path} contains a complete run with different settings ({'; '.join(changed_settings[:3])}): {extend_hint}"
            "choose another folder with --out, or use --force."
        )
    unreadable_paths = {file.path for file in run.read_unreadable()}
    usable = [p for p in index.images if p.path not in unreadable_paths]
    if config.split.folds:  # folds include the images of the source's validation split
        usable = [replace(p, split="train") if p.split == "validation" else p for p in usable]
    data_difference = describe_difference(run.read_data() or (), replace(index, images=tuple(usable)))
    if data_difference:
        raise OutputError(
            f"{path} contains a complete run on images other than those now in {index.name} ({data_difference}): "
            "choose another folder with --out, or use --force."
        )


def diff_settings(old_config: RunConfig, new_config: RunConfig) -> Iterator[str]:
    """Yield a description of each setting that affects training and differs."""
    old, new = flatten_config(old_config), flatten_config(new_config)
    ignored = IGNORED_SETTINGS | DISTRIBUTION_SETTINGS if new_config.device.lr_scaling == "none" else IGNORED_SETTINGS
    for key in sorted(old.keys() | new.keys()):
        if (
            key not in ignored
            and old.get(key) != new.get(key)
            and not (key in AUTO_SETTINGS and new.get(key) in AUTO_VALUES)
        ):
            yield f"{key} is {old.get(key)}, not {new.get(key)}"


def load_result(run: RunDirectory) -> TrainResult:
    """Return the result that ``run.json`` stores; raises `ModelError` if it is missing or incomplete."""
    values, folder = run.result, run.bundle
    field_names = {f.name for f in fields(TrainResult)}
    details = {name: values.pop(name) for name in list(values) if name not in field_names}
    values |= {"run": str(run.path), "bundle": None if folder is None else str(folder), "details": details}
    if folder is None and not values.get("no_bundle_reason"):
        values["no_bundle_reason"] = f"its folder {run.path / 'bundle'} was removed"
    return jsonio.build(TrainResult, values, f"{run.path / 'run.json'}: the result")
