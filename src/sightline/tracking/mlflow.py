"""MLflow, through its client: a local store, or the server set in MLflow's own variables.

Without ``MLFLOW_TRACKING_URI``, MLflow itself chooses the store: ``mlflow.db``, an SQLite file in the current folder.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline._keras.imports import import_mlflow
from sightline.escaping import quote_path
from sightline.tracking.tracker import Status, TrackedRun, Tracker

EXPERIMENT = "sightline"  # default; MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID override it
STATUSES = {"complete": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
SQLITE = "sqlite:///"  # followed by the path of a file
MAX_BATCH = 100  # settings per request; the limit of MLflow's servers
MAX_VALUE = 6000  # characters in a setting's value
_RUN_ID = re.compile(r"[0-9a-f]{32}")


class MlflowTracker(Tracker):
    """A run of an MLflow experiment; leaves the active run and the tracking URI of the process as they are."""

    def start(self, run: TrackedRun) -> None:
        """Create a run, or reopen `run.tracked_id`; settings already in MLflow are kept, as it requires."""
        mlflow = import_mlflow()
        self._entities = mlflow.entities
        self._client = mlflow.MlflowClient()
        recorded: Mapping[str, Any] = {}
        if _RUN_ID.fullmatch(run.tracked_id):
            self.tracked_id = run.tracked_id
            recorded = self._client.get_run(self.tracked_id).data.params
            self._client.update_run(self.tracked_id, status="RUNNING")
            losses = self._client.get_metric_history(self.tracked_id, "loss/train")
            self.last_epoch = max((metric.step for metric in losses), default=0)
        else:
            experiment = os.environ.get("MLFLOW_EXPERIMENT_ID") or self._find_experiment()
            self.tracked_id = self._client.create_run(experiment, run_name=run.path.name).info.run_id
        store = str(mlflow.get_tracking_uri())
        if store.startswith(SQLITE):
            self.note = (
                f"mlflow: the run is written to {store.removeprefix(SQLITE)}; with the package mlflow, "
                f"`mlflow ui --backend-store-uri {quote_path(store)}` shows it under Model training"
            )
        params = [
            self._entities.Param(key, str(value)[:MAX_VALUE])
            for key, value in run.params.items()
            if key not in recorded
        ]
        for first in range(0, len(params), MAX_BATCH):
            self._client.log_batch(self.tracked_id, params=params[first : first + MAX_BATCH])

    def _find_experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except Exception:  # another process has just created it, such as a trial of a sweep
            if (experiment := self._client.get_experiment_by_name(name)) is None:
                raise
            return str(experiment.experiment_id)

    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Write all metrics in one request."""
        now = int(1000 * time.time())
        self._client.log_batch(
            self.tracked_id,
            metrics=[self._entities.Metric(name, value, now, epoch) for name, value in metrics.items()],
        )

    def log_result(self, metrics: Mapping[str, float], epoch: int, artifacts: Sequence[Path]) -> None:
        """Write the metrics, and store each file or folder under its name."""
        self.log_metrics(metrics, epoch)
        for path in artifacts:
            if path.is_dir():
                self._client.log_artifacts(self.tracked_id, str(path), path.name)
            else:
                self._client.log_artifact(self.tracked_id, str(path))

    def finish(self, status: Status) -> None:
        """Set the status of the run."""
        self._client.set_terminated(self.tracked_id, STATUSES[status])
