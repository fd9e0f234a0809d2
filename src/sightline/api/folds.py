"""Train the run of each fold: before the final model for `train --folds`, and from the last checkpoint for `resume`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sightline.api.report_writer import write_first_report
from sightline.callbacks import Callback, ForwardingCallback
from sightline.config import RunConfig
from sightline.data.indexing import Sources
from sightline.errors import Interrupted, UsageError
from sightline.runs import folds
from sightline.runs.directory import RunDirectory
from sightline.runs.failures import record_failure
from sightline.runs.paths import is_run
from sightline.runs.pipeline import Job, run_pipeline
from sightline.runs.resolve import RunInputs
from sightline.runs.train_request import TrainRequest
from sightline.tasks.protocol import find_task


def check_settings(config: RunConfig, *, has_hosts: bool) -> None:
    """Raise `UsageError` for settings that cannot be combined with folds."""
    count, fold = config.split.folds, config.split.fold
    if count == 1 or (fold is not None and fold >= count):
        raise UsageError(
            f"split.folds is {count} and split.fold is {fold}: expected at least 2 folds (0 for none), "
            "and a lower fold or none."
        )
    if not count:
        return
    if not find_task(config.model.task).supports_folds:
        raise UsageError(f"--folds is not possible with model.task={config.model.task}: leave it out.")
    reasons = {"--hosts": has_hosts, "--time-limit": bool(config.train.time_limit)}
    for option, applies in reasons.items():
        if applies:
            raise UsageError(f"--folds trains several models one after the other: leave out {option}, or --folds.")


def train_folds(job: Job, inputs: RunInputs, request: TrainRequest, sources: Sources) -> None:
    """Train the runs of all folds that are not complete; each is a run below that of `job`, and a unit of work."""
    if not folds.is_folded(inputs.config):
        return
    count, callback = inputs.config.split.folds, _NewMessages(job.callback)
    for fold in range(count):
        path = folds.get_fold_path(job.run, fold)
        if is_run(path) and RunDirectory.open(path).info.get("status") == "complete":
            continue
        callback.on_message(f"fold {fold + 1} of {count}")
        try:
            if is_run(path):
                from sightline.api.resuming import resume

                resume(path, sources, callback=callback)
            else:
                _train_fold(path, fold, inputs, request, callback)
        except Interrupted:
            raise Interrupted(f"Stopped in fold {fold + 1} of {count}.") from None
    job.callback.on_message(f"the final model, on all images, after {count} folds")


class _NewMessages(ForwardingCallback):
    """Forwards each message once: most notes on the data are the same in every fold."""

    def __init__(self, inner: Callback) -> None:
        super().__init__(inner)
        self._seen = set[str]()

    def on_message(self, text: str) -> None:
        if text not in self._seen:
            self._seen.add(text)
            super().on_message(text)


def _train_fold(path: Path, fold: int, inputs: RunInputs, request: TrainRequest, callback: Callback) -> None:
    split = replace(inputs.config.split, fold=fold)
    fold_request = replace(request, assignments=(*request.assignments, f"split.fold={fold}"))
    fold_inputs = replace(
        inputs, config=replace(inputs.config, split=split), index=folds.select_images(inputs.index, split)
    )
    with RunDirectory.create(path, request=fold_request.to_dict()) as run, record_failure(run, new=True):
        run_pipeline(Job(run, callback), fold_inputs, write_first_report)
