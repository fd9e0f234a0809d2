"""`train` with an existing run directory: re-evaluate a run with the same settings, reject any other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from sightline import jsonio
from sightline.config import RunConfig
from sightline.data.dataset import Dataset
from sightline.data.membership import difference
from sightline.errors import DataError, OutputError
from sightline.evaluation.judgement import Wanted
from sightline.records import Index, Part, PartFigures, TrainResult
from sightline.run import Run
from sightline.watch import Watcher
from sightline.workflow import judging
from sightline.workflow.classifier import load
from sightline.workflow.compare import settings_of

FREE = {  # settings that do not affect the trained weights
    "evaluation.positive",
    *("device.threads", "device.deterministic", "data.cache", "data.allow"),
    *("train.checkpoint_minutes", "train.checkpoint_steps", "train.checkpoint_keep", "train.keep_state"),
}
SPREAD = {"device.count", "device.hosts"}  # ignored too unless the learning rate scales with them
CHOSEN = {  # auto matches whatever was chosen for it
    *("device.backend", "device.engine", "model.weights", "picture.range", "train.precision"),
}


def is_run(path: Path) -> bool:
    """Return whether `path` is a run directory, of any status."""
    return (path / "run.json").is_file()


def tested(path: Path, config: RunConfig, index: Index, watcher: Watcher) -> TrainResult:
    """Evaluate the complete run at `path` again, on its test split (else validation), and return its result.

    Raises `OutputError` if the run is not complete, or if its settings or images differ from `config` and `index`.
    """
    run = Run.open(path)
    info = run.info
    if info.get("status") != "complete":
        other = next(differences(run.config, config), None) if run.has_config else None
        way = (
            f"its settings differ ({other}), so choose"
            if other
            else f"`sightline resume {path}` continues it; or choose"
        )
        raise OutputError(
            f"{path} contains a run that is {info.get('status')}, not complete: {way} another folder with --out, "
            "or retrain with --force."
        )
    other_settings = list(differences(run.config, config))
    if other_settings:
        more = config.train.epochs > len(run.read_history())
        longer = more and all(text.startswith("train.epochs ") for text in other_settings)
        extend = f"`sightline resume {path} --epochs {config.train.epochs}` extends it; or " if longer else ""
        raise OutputError(
            f"{path} contains a complete run with different settings ({'; '.join(other_settings[:3])}): {extend}"
            "choose another folder with --out, or use --force."
        )
    known = run.read_rejected()
    kept = [i for i, p in enumerate(index.pictures) if p.path not in known]
    different = difference(run.read_data() or (), replace(index, pictures=tuple(index.pictures[i] for i in kept)))
    if different:
        raise OutputError(
            f"{path} contains a complete run on other images than those now in {index.name} ({different}): "
            "choose another folder with --out, or use --force."
        )
    watcher.say(f"{path} is already complete with these settings: nothing to train, evaluating it again")
    before = result(run, run.result)
    part: Part = "test" if before.test is not None else "validation"
    wanted = Wanted(positive=config.evaluation.positive)
    classifier = load(path)
    images = classifier.labeled_images(progress=watcher.progress, index=index)
    found = judging.judge(classifier, images, split=part, wanted=wanted, progress=watcher.progress).evaluation
    figures = PartFigures(found.accuracy, found.loss, found.count)
    return replace(before, test=figures) if part == "test" else replace(before, validation=figures)


def check_pictures(run: Run, data: Dataset) -> None:
    """Raise `DataError` if the images, labels or splits of `data` differ from those that the run started with."""
    before = run.read_data()
    now = [(p.sha256, p.label, part) for p, part in zip(data.pictures, data.parts, strict=True)]
    if before is None:
        return
    was = [(row.sha256, row.label, row.split) for row in before]
    if was == now:
        return
    missing, new = Counter(was) - Counter(now), Counter(now) - Counter(was)
    what = f"{missing.total()} of {len(was)} are missing or changed, {new.total()} are new"
    if not missing and not new:
        what = "files were renamed, which changes their order"
    raise DataError(
        f"The images of {data.name} are not those that the run {run.path} started with ({what}): "
        "restore them, or retrain with --force."
    )


def differences(before: RunConfig, now: RunConfig) -> Iterator[str]:
    """Yield a description of each setting that affects training and differs."""
    old, new = settings_of(before), settings_of(now)
    free = FREE | SPREAD if now.device.scaling == "none" else FREE
    for key in sorted(old.keys() | new.keys()):
        if key not in free and old.get(key) != new.get(key) and not (key in CHOSEN and new.get(key) == "auto"):
            yield f"{key} is {old.get(key)}, not {new.get(key)}"


def result(run: Run, saved: Mapping[str, Any]) -> TrainResult:
    """Return the `TrainResult` that ``run.json`` stores as `saved`; raises `ModelError` if it is incomplete."""
    values = dict(saved)
    known = {f.name for f in fields(TrainResult)}
    details = {name: values.pop(name) for name in saved if name not in known}
    values |= {"run": str(run.path), "bundle": None if run.bundle is None else str(run.bundle), "details": details}
    return jsonio.build(TrainResult, values, f"{run.path / 'run.json'}: the result")
