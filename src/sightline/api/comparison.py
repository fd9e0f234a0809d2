"""`compare_runs`: show the settings that differ between runs, side by side with their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import _io, intervals, jsonio
from sightline.api import owned_png
from sightline.api.common_images import NOT_EVALUATED, CommonImages, find_common_images, find_common_masks
from sightline.api.record_list import build_frame, format_html_table, format_text_table
from sightline.callbacks import EpochRecord
from sightline.config import RunConfig, flatten_config
from sightline.data.types import OUT_OF_FOLD, Split
from sightline.errors import UsageError, plural
from sightline.evaluation import bootstrap, paired
from sightline.evaluation.multi_label import MultiLabelResult
from sightline.evaluation.multi_label_metrics import LabelSetComparison, compare_label_sets
from sightline.evaluation.ordinal import MAE, QWK, GradeComparison, compare_grades
from sightline.evaluation.paired import MaskComparison, PairedComparison, compare_masks
from sightline.evaluation.results import Metric
from sightline.intervals import Interval
from sightline.metrics import describe_metric
from sightline.report import comparison_plots
from sightline.runs import folds
from sightline.runs.directory import RunDirectory
from sightline.runs.metrics_info import read_metrics
from sightline.runs.run_report import find_reported_split
from sightline.tasks.protocol import find_task

IMAGE_IOU = "image_iou"
ROUNDING_TOLERANCE = 1e-6  # allowed deviation of accuracy * count from a whole number, relative to the count


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One run: its `accuracy` and `loss` on `split`, and the `settings` that differ between the runs.

    For a run with folds, the split is ``out-of-fold`` instead of ``validation``.

    `metrics` are the other main metrics of the run's task, by name, such as ``hierarchical_f1``. `leaked` counts the
    images of that split that are also in an earlier split. An incomplete run has the validation metrics of its best
    epoch, the seconds of its epochs, and None for missing values.
    """

    name: str
    run: str
    status: str
    settings: dict[str, Any]
    model: str
    parameters: int | None
    split: str | None
    accuracy: float | None
    accuracy_interval: Interval | None
    loss: float | None
    epochs: int
    seconds: float
    history: tuple[EpochRecord, ...]
    leaked: int = 0
    metrics: Mapping[str, float | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields except the history as JSON values."""
        return jsonio.fields_to_dict(self, skip=["history"])


@dataclass(frozen=True, slots=True)
class PairedRun:
    """Paired comparison of the run `second` with the baseline `first`; if `comparison` is None, `note` explains why.

    `split` is the split that both were evaluated on: ``out-of-fold`` for runs with folds, and ``held-out`` if only one
    of them has folds; images are paired by content and class. `comparison` compares the `metric`: ``accuracy``, or with
    several labels per image ``subset_accuracy``, the fraction of images whose labels are all correct. `grades` compares
    how far predicted grades are from the true ones, if one of the runs is ordinal, and `label_sets` the metrics of
    several labels per image, if both runs have the same classes. Runs with masks have `masks` in place of `comparison`;
    it compares the mean IoU of each image.
    """

    first: str
    second: str
    split: str | None
    comparison: PairedComparison | None
    note: str
    grades: GradeComparison | None = None
    label_sets: LabelSetComparison | None = None
    metric: str = "accuracy"
    masks: MaskComparison | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, with the fields of the comparison at the same level."""
        values = jsonio.fields_to_dict(self, skip=["comparison"])
        if self.comparison is None:
            return values | {"verdict": None if self.masks is None else self.masks.verdict}
        return values | jsonio.fields_to_dict(self.comparison)

    def describe(self) -> str:
        """Return the verdict with its numbers, in one sentence."""
        c = self.comparison or self.masks
        if c is None:
            return f"{self.second} vs. {self.first}: not compared, because {self.note}."
        i = c.difference_interval
        interval_text = "" if i is None else f" (95% interval {i.low:+.4f} to {i.high:+.4f})"
        note = f"; {self.note}" if self.note else ""
        if isinstance(c, MaskComparison):
            unit = "" if c.groups is None else f" of {plural(c.groups, 'group')}"
            return (
                f"{self.second} vs. {self.first}: {c.verdict} in mean IoU of an image: {c.difference:+.4f}"
                f"{interval_text} on {c.count} {self.split} images; permutation test{unit}, p = {c.p_value:.3g}{note}."
            )
        is_accuracy = self.metric == "accuracy"
        test = "exact McNemar" if c.groups is None else f"permutation test of {plural(c.groups, 'group')},"
        verdict = f"{c.verdict}. Accuracy" if is_accuracy else f"{c.verdict} in {describe_metric(self.metric)}:"
        return (
            f"{self.second} vs. {self.first}: {verdict} "
            f"{c.difference:+.4f}{interval_text} on {c.count} {self.split} images; "
            f"{self.second} alone is right on {c.only_second_correct}, {self.first} alone on {c.only_first_correct}; "
            f"{test} p = {c.p_value:.3g}{note}.{self._describe_metrics()}"
        )

    def _describe_metrics(self) -> str:
        differences: dict[str, Metric] = {}
        if self.grades is not None:
            grades = self.grades
            differences = {QWK: grades.kappa_difference, MAE: grades.error_difference}
        if self.label_sets is not None:
            differences = {name: getattr(self.label_sets, name) for name in MultiLabelResult.headlines}
        text = "; ".join(f"{describe_metric(name)} {_describe_difference(of)}" for name, of in differences.items())
        return f" {text[0].upper()}{text[1:]}." if text else ""


@dataclass(frozen=True, slots=True, repr=False)
class RunComparison:
    """Two or more runs side by side: a row for each, and the paired comparison of each with the first."""

    rows: tuple[ComparisonRow, ...]
    paired: tuple[PairedRun, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the rows and the paired comparisons as JSON values."""
        return {"runs": [row.to_dict() for row in self.rows], "comparisons": [one.to_dict() for one in self.paired]}

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with a row per run; raises `MissingExtraError` without pandas."""
        return build_frame(self._table())

    def _table(self) -> list[dict[str, Any]]:
        return [
            {
                "run": row.name, **row.settings, "parameters": row.parameters, "accuracy": row.accuracy,
                "95% interval": "" if (i := row.accuracy_interval) is None else f"{i.low:.4f} to {i.high:.4f}",
                **{metric_name: row.metrics.get(metric_name) for metric_name in list_metrics(self.rows)},
                "split": row.split, "epochs": row.epochs, "seconds": row.seconds,
            }
            for row in self.rows
        ]  # fmt: skip

    def __repr__(self) -> str:
        return "\n".join([format_text_table(self._transpose()), *(one.describe() for one in self.paired)])

    def _repr_html_(self) -> str:
        sentences = "".join(f"<p>{escape(one.describe())}</p>" for one in self.paired)
        return format_html_table(self._transpose()) + sentences

    def _transpose(self) -> list[dict[str, Any]]:
        """Return a column for each run, since they may differ in many settings."""
        table = self._table()
        return [{"": name, **{row["run"]: row[name] for row in table}} for name in table[0] if name != "run"]


def list_metrics(rows: Sequence[ComparisonRow]) -> list[str]:
    """Return the names of the metrics besides accuracy and loss that a run has."""
    return list(dict.fromkeys(name for row in rows for name in row.metrics if name != "top_1"))  # top_1 is the accuracy


def compare(paths: Sequence[str | Path], *, figure: str | Path | None = None) -> RunComparison:
    """Compare two or more runs; `figure` is a PNG file to write, with the curves of all runs."""
    if figure is not None:
        figure = owned_png.check_output(figure, "--figure")
    rows = compare_runs(paths)
    comparison = RunComparison(rows, compare_to_first(rows))
    if figure is not None:
        curves = comparison_plots.plot_curves({row.name: row.history for row in rows})
        owned_png.save_owned_png(figure, curves)
    return comparison


def compare_to_first(rows: Sequence[ComparisonRow]) -> tuple[PairedRun, ...]:
    """Compare each run with the first one, on the test images that both were evaluated on, else on validation images.

    The family-wise error rate of all comparisons is 5%.
    """
    baseline, *others = rows
    return tuple(_compare_pair(baseline, other, len(others)) for other in others)


def _compare_pair(baseline: ComparisonRow, other: ComparisonRow, tests: int) -> PairedRun:
    tasks = [RunDirectory(Path(row.run)).config.model.task for row in (baseline, other)]
    if any(find_task(task).targets.are_masks for task in tasks):
        return _compare_mask_pair(baseline, other, tests)
    common = find_common_images(RunDirectory(Path(baseline.run)), RunDirectory(Path(other.run)))
    if common is None:
        return PairedRun(baseline.name, other.name, None, None, _explain(NOT_EVALUATED, baseline, other))
    split = _name_common_split(common.split, baseline, other)
    if not len(common.rows):
        note = f"they have no {split} image in common"
        return PairedRun(baseline.name, other.name, split, None, note)
    is_whole = len(common.rows) == len(common.first.paths) == len(common.second.paths)
    note = "" if is_whole else f"only {len(common.rows)} of their {split} images are in both"
    first, second = (predicted == common.labels for predicted in common.predicted)
    groups = bootstrap.number_groups([common.first.paths[row] for row in common.rows[:, 0]], common.groups)
    return PairedRun(
        baseline.name, other.name, split, paired.compare_paired(first, second, tests=tests, groups=groups), note,
        _compare_grades(common, tasks, groups), _compare_label_sets(common, groups),
        "subset_accuracy" if common.has_label_sets else "accuracy",
    )  # fmt: skip


def _compare_mask_pair(baseline: ComparisonRow, other: ComparisonRow, tests: int) -> PairedRun:
    common = find_common_masks(RunDirectory(Path(baseline.run)), RunDirectory(Path(other.run)))
    if isinstance(common, str):
        return PairedRun(baseline.name, other.name, None, None, _explain(common, baseline, other), metric=IMAGE_IOU)
    groups = bootstrap.number_groups(common.paths, common.groups)
    masks = compare_masks(common.ious[:, 0], common.ious[:, 1], tests=tests, groups=groups)
    split = _name_common_split(common.split, baseline, other)
    note = "" if common.is_whole else f"only {masks.count} of their {split} images are in both"
    return PairedRun(baseline.name, other.name, split, None, note, masks=masks, metric=IMAGE_IOU)


def _explain(note: str, *rows: ComparisonRow) -> str:
    """Return why runs are not compared: `note`, unless one of them cannot be evaluated yet."""
    name = next((row.name for row in rows if row.status != "complete"), None)
    if note != NOT_EVALUATED or name is None:
        return note
    return f"{name} is not complete: wait for its training, or resume it"


def _name_common_split(split: Split, baseline: ComparisonRow, other: ComparisonRow) -> str:
    """Return the name, in sentences, of the images that both runs were evaluated on, stored as `split`."""
    names = {_name_split(split, RunDirectory(Path(row.run)).config) for row in (baseline, other)}
    return names.pop() if len(names) == 1 else "held-out"


def _name_split(split: Split, config: RunConfig) -> str:
    return OUT_OF_FOLD if split == "validation" and folds.is_folded(config) else split


def _compare_grades(
    common: CommonImages, tasks: Sequence[str], groups: NDArray[np.int64] | None
) -> GradeComparison | None:
    """Compare the grades of two runs with the same classes, in the order of an ordinal one; None if neither is."""
    orders = [
        of.classes
        for of, task in zip((common.first, common.second), tasks, strict=True)
        if find_task(task).targets.are_ordered
    ]
    if not orders or common.has_label_sets or set(common.first.classes) != set(common.second.classes):
        return None
    position = {name: i for i, name in enumerate(orders[0])}
    labels, first, second = (
        np.array([position[name] for name in names.tolist()], np.int64) for names in (common.labels, *common.predicted)
    )
    return compare_grades(labels.astype(np.int32), first, second, len(position), groups)


def _compare_label_sets(common: CommonImages, groups: NDArray[np.int64] | None) -> LabelSetComparison | None:
    """Compare the multi-label metrics of two runs with the same classes; None for other runs."""
    if common.present is None or set(common.first.classes) != set(common.second.classes):
        return None
    columns = [common.second.classes.index(name) for name in common.first.classes]
    first_rows, second_rows = common.rows.T
    return compare_label_sets(
        common.first.labels[first_rows],
        (common.first.probabilities[first_rows], common.second.probabilities[second_rows][:, columns]),
        (common.present[0][first_rows], common.present[1][second_rows][:, columns]),
        groups,
    )


def _describe_difference(metric: Metric) -> str:
    if metric.value is None:
        return f"not compared ({metric.note})"
    i = metric.interval
    return f"{metric.value:+.4f}" + ("" if i is None else f" (95% interval {i.low:+.4f} to {i.high:+.4f})")


def compare_runs(paths: Sequence[str | Path]) -> tuple[ComparisonRow, ...]:
    """Read two or more runs, complete or not, and return a row for each, in the given order.

    Raises `UsageError` for fewer than two runs or duplicates, `ModelError` for a path that is not a run.
    """
    folders = [_io.expand_home(p) for p in paths]
    if len(folders) < 2:
        raise UsageError("A comparison needs two or more runs: give another one as well.")
    resolved_paths = [folder.resolve() for folder in folders]
    for i, resolved_path in enumerate(resolved_paths):
        if resolved_path in resolved_paths[:i]:
            raise UsageError(f"{folders[i]} is given twice: give each run once.")
    runs = [RunDirectory.open(folder) for folder in folders]
    configs = [run.config for run in runs]
    settings = _differing_settings([flatten_config(config) for config in configs])
    rows = zip(_short_names(folders), runs, configs, settings, strict=True)
    return tuple(_build_row(name, run, config, differing) for name, run, config, differing in rows)


def describe_run(path: Path) -> ComparisonRow:
    """Return the row of one run, complete or not; raises `ModelError` for a path that is not a run."""
    run = RunDirectory.open(path)
    return _build_row(path.name, run, run.config, {})


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest path suffixes that distinguish the folders."""
    absolute = [folder.resolve().parts for folder in folders]
    length = 1
    while len({components[-length:] for components in absolute}) < len(absolute):
        length += 1
    return ["/".join(parts[-length:]) for parts in absolute]


def _differing_settings(tables: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of each table that differ between tables, with None for missing ones.

    A list that is empty in only one table has no entry: in the others, its elements have entries of their own.
    """
    keys = dict.fromkeys(key for table in tables for key in table)
    differ = [key for key in keys if any(table.get(key) != tables[0].get(key) for table in tables)]
    differ = [key for key in differ if not any(other.startswith(f"{key}.") for other in keys)]
    return [{key: table.get(key) for key in differ} for table in tables]


def _build_row(name: str, run: RunDirectory, config: RunConfig, settings: dict[str, Any]) -> ComparisonRow:
    info, history = run.info, run.read_history()
    result = info.get("result") or {}
    split = find_reported_split(result)
    metrics = result[split] if split else {}
    others = (result.get("metrics") or {}).get(split) or {}
    if (file := run.path / "eval" / str(split) / "metrics.json").exists():  # thresholds may have changed since
        metrics = read_metrics(file)
        others = {key: of_name["value"] for key in others if (of_name := metrics["metrics"].get(key)) is not None}
    accuracy, loss, ends = (metrics.get(key) for key in ("accuracy", "loss", "accuracy_interval"))
    interval = None if ends is None or accuracy is None else Interval(*ends)
    if not result and (best_epoch := _best_epoch(history, config.train.early_stopping.monitor)) is not None:
        split, accuracy, loss = "validation", best_epoch.val_accuracy, best_epoch.val_loss
        interval = _estimate_interval(run, accuracy)
    return ComparisonRow(
        name=name,
        run=str(run.path),
        status=str(info.get("status")),
        settings=settings,
        model=config.model.name,
        parameters=result.get("parameters"),
        split=None if split is None else _name_split(split, config),
        accuracy=accuracy,
        accuracy_interval=interval,
        loss=loss,
        epochs=len(history),
        seconds=result.get("seconds", sum(r.seconds for r in history)),
        history=history,
        metrics=others,
        leaked=((result.get("leaked") or {}).get(split) or {}).get("count", 0),
    )


def _best_epoch(history: Sequence[EpochRecord], monitor: str) -> EpochRecord | None:
    """Return the epoch whose weights the run kept; None without validation images."""
    validated_epochs = [r for r in history if getattr(r, monitor) is not None]
    if not validated_epochs:
        return None
    return (min if monitor.endswith("loss") else max)(validated_epochs, key=lambda r: getattr(r, monitor))


def _estimate_interval(run: RunDirectory, accuracy: float | None) -> Interval | None:
    """Return the 95% interval of the accuracy of an epoch on the validation images.

    None if images of a group depend on each other, or if predictions are not simply right or wrong.
    """
    rows = [row for row in run.read_data() or () if row.split == "validation"]
    if accuracy is None or not rows or any(row.group for row in rows):
        return None
    hits, count = accuracy * len(rows), len(rows)
    if find_task(run.config.model.task).targets.allows_several or abs(hits - round(hits)) > ROUNDING_TOLERANCE * count:
        return None
    return intervals.wilson_interval(round(hits), count)
