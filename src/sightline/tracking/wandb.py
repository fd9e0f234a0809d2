"""Weights & Biases: its server if you are logged in, otherwise files in the run directory, which `wandb sync` can send.

By default, the library also sends console output, code, and details of the machine and packages; this is disabled.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline import _io
from sightline._keras.imports import import_wandb
from sightline.tracking.tracker import Status, TrackedRun, Tracker

PROJECT = "sightline"  # default; WANDB_PROJECT overrides it
EXIT_CODES = {"complete": 0, "interrupted": 130, "failed": 1}
_RUN_ID = re.compile(r"[0-9a-f]{16}")


class WandbTracker(Tracker):
    """A run of a Weights & Biases project."""

    def start(self, run: TrackedRun) -> None:
        """Start a run, or continue `run.tracked_id`; offline without a login or ``WANDB_MODE``."""
        wandb = import_wandb()
        _io.refuse_links(run.path, run.path / "wandb")
        self.tracked_id = run.tracked_id if _RUN_ID.fullmatch(run.tracked_id) else secrets.token_hex(8)
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")
        self._wandb = wandb
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=run.path.name,
            id=self.tracked_id,
            dir=str(run.path),
            mode=mode,
            resume=None if mode == "offline" else "allow",  # offline, each part has its own folder
            reinit="create_new",  # leaves a run of the caller open
            config=dict(run.params),
            settings=wandb.Settings(
                console="off", disable_git=True, host="", save_code=False, silent=True,
                x_disable_machine_info=True, x_disable_meta=True, x_disable_stats=True, x_save_requirements=False,
            ),
        )  # fmt: skip
        self.last_epoch = max(self._run.starting_step - 1, 0) if self._run.resumed else 0
        if mode == "offline":
            folder = Path(self._run.dir).parent
            self.note = f"wandb: offline, so the run is written to {folder}; `wandb sync {folder}` sends it"

    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Write all metrics of an epoch."""
        self._run.log(dict(metrics), step=epoch)

    def log_result(self, metrics: Mapping[str, float], epoch: int, artifacts: Sequence[Path]) -> None:
        """Write the metrics into the summary of the run, and store each file or folder as an artifact."""
        del epoch  # steps logged before the run was resumed cannot be logged again
        self._run.summary.update(dict(metrics))
        for path in artifacts:
            artifact = self._wandb.Artifact(f"{path.stem}-{self.tracked_id}", type=path.stem)
            if path.is_dir():
                artifact.add_dir(str(path))
            else:
                artifact.add_file(str(path))
            self._run.log_artifact(artifact)

    def finish(self, status: Status) -> None:
        """Wait until everything has been sent or written."""
        self._run.finish(exit_code=EXIT_CODES[status])
