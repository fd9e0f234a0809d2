"""One trial of a sweep: its reports during training, and its final metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sightline import jsonio
from sightline.api.options import format_toml
from sightline.callbacks import Callback, EpochRecord
from sightline.errors import Interrupted
from sightline.intervals import Interval
from sightline.sweeps.parameters import Value
from sightline.sweeps.search_space import SearchSpace
from sightline.training.result import TrainResult


class TrialCallback(Callback):
    """Reports each epoch, and stops the trial when the study's pruner decides so; `verdict` is the reason."""

    def __init__(self, inner: Callback, trial: Any, space: SearchSpace, slot: int, *, is_alone: bool) -> None:
        self._inner, self._trial, self._space, self._slot = inner, trial, space, slot
        self._is_alone = is_alone
        self.verdict, self.epochs = "", 0

    def on_progress(self, task: str, done: int, total: int) -> None:
        """Forward the progress of slow work, unless other trials may be running at the same time."""
        if self._is_alone:
            self._inner.on_progress(task, done, total)

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Report the monitored metric; raise `Interrupted` if the trial is pruned."""
        if record.epoch <= self.epochs:  # repeated, because its worker was lost
            return
        self.epochs = record.epoch
        field = self._space.monitored_field
        value = None if field is None else getattr(record, field)
        if value is None:  # known only at the end of the trial, which then fails without a validation split
            return
        monitor = self._space.monitor
        self._inner.on_message(
            f"trial {self._slot}, epoch {record.epoch}: loss {record.loss:.4f}, {monitor} {value:.4f}"
        )
        self._trial.report(value, record.epoch)
        if self._trial.should_prune():
            self.verdict = (
                f"Pruned after epoch {record.epoch}: other trials had a better {monitor} than {value:.4f} by then."
            )
            raise Interrupted(self.verdict)


def read_metric(result: TrainResult, space: SearchSpace) -> tuple[float | None, Interval | None, str]:
    """Return the monitored metric of a trained run, its interval if it has one, and the reason if either is missing."""
    metrics = result.validation
    assert metrics is not None
    headlines = result.details.get("metrics", {}).get("validation", {})
    value = ({"accuracy": metrics.accuracy, "loss": metrics.loss} | headlines)[space.metric]
    file = Path(result.run) / "eval" / "validation" / "metrics.json"
    if not file.is_file():
        return value, None, ""
    evaluation: Any = jsonio.read_object(file)
    intervals = {name: metric.get("interval") for name, metric in evaluation["metrics"].items()}
    intervals |= {"accuracy": evaluation["accuracy_interval"], "loss": intervals.get("log_loss")}
    note = evaluation["metrics"].get(space.metric, {}).get("note", "")
    return value, None if (ends := intervals.get(space.metric)) is None else Interval(*ends), note


def format_values(values: dict[str, Value]) -> str:
    """Format the values of a trial on one line."""
    return ", ".join(
        f"{name}={value if isinstance(value, str) else format_toml(value)}" for name, value in values.items()
    )
