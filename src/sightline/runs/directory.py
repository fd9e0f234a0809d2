"""`RunDirectory`: the only reader and writer of run directories.

    run.json         schema, status, versions, seed, device, command, timings, final metrics
    config.toml      fully resolved configuration
    data.jsonl       one line per image (path, sha256, label, split, and group and mask if any), one per unreadable
    leakage.jsonl    one line per group of identical files or near duplicates in more than one split
    thumbnails.npz   training and validation images at 32x32 gray pixels, to find near duplicates in other data
    patch.jsonl      a copy of the corrections that were applied to the data, if any
    history.jsonl    one line per epoch; history.csv the same for spreadsheets
    model.keras      best weights by the monitored metric, float32
    model.json       classes and preprocessing spec of model.keras
    checkpoints/     training state; for a complete run the last one, unless train.keep_last_checkpoint is false
    lock             held by the process that writes the run
    eval/<split>/    metrics.json, predictions.npz
    folds/<k>/       with split.folds, the run that holds out fold k
    thresholds.json  abstention thresholds, once fitted by `evaluate --target-precision` or `--coverage`
    label_issues.jsonl  labels that may be wrong, worst first, once `evaluate --find-label-issues` searched for them
    bundle/          the deployable model, see `inference.bundle`
    figures/         curves, confusion, reliability, risk-coverage, those of `evaluate`; *.png and *.svg
    network.json     the layers of the network and their cost
    report/          thumbnails and heat maps, see `report_images`
    report.html      self-contained report, rendered only from the files above
    tensorboard/     TensorBoard event files

Every file is written atomically (temporary name, then rename). ``run.json`` gets ``"status": "complete"`` last. As long
as there is no ``config.toml``, the `request` in ``run.json`` contains the arguments that it will be resolved from.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sightline import _io, _locks, _packed, jsonio
from sightline.callbacks import EpochRecord
from sightline.config import RunConfig, dump_toml, load_config
from sightline.config.parse import read_config_text
from sightline.data.checks.leakage import Leak, SmallImages
from sightline.data.dataset import DecodedDataset
from sightline.data.label_patch import PATCH_LIMIT, PatchEntry
from sightline.data.recorded_images import ImageRow
from sightline.data.types import UnreadableImage
from sightline.errors import ModelError, OutputError
from sightline.escaping import CsvWriter, escape_cell
from sightline.evaluation.results import LabeledPredictions, TaskResult
from sightline.inference import bundle
from sightline.inference.bundle import Bundle
from sightline.inference.manifest import check_classes
from sightline.inference.results import Thresholds
from sightline.preprocessing import PreprocessingSpec
from sightline.runs.paths import LOCK_NAME, check_writable, is_run, lock_run, next_path, require_run
from sightline.runs.predictions import parse_predictions
from sightline.runs.run_info import read_run_info

SCHEMA = 2


@dataclass(frozen=True, slots=True)
class _ModelSpec:
    """The content of ``model.json``."""

    classes: tuple[str, ...]
    preprocess: dict[str, Any]


class RunDirectory:
    """One run directory, opened with `RunDirectory.create` or `RunDirectory.open`."""

    def __init__(self, path: str | Path) -> None:
        self.path = _io.expand_home(path)

    @classmethod
    @contextmanager
    def create(cls, path: Path, *, force: bool = False, **facts: Any) -> Iterator[RunDirectory]:
        """Create a new run directory with `facts`, and the command of this process, in its ``run.json``.

        It is locked from before that is written until the block ends. Raises `OutputError` if the directory is not
        empty (unless `force`), cannot be written, or is locked by another process.
        """
        check_writable(path, force=force)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"The run directory {path} cannot be created: {error.strerror}. Choose another with --out."
            ) from error
        run = cls(path)
        with run.lock():
            if not force:
                check_writable(path)  # again, since another process may have written a run meanwhile
            for entry in list(path.iterdir()) if force else ():
                if entry.name != LOCK_NAME:
                    _io.remove(entry)
            run.update(schema=SCHEMA, status="running", command=sys.argv, **facts)
            yield run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open an existing run; raises `ModelError` if it is not a run or has an unknown schema."""
        run = cls(path)
        schema = run.info.get("schema")
        if schema != SCHEMA:
            raise ModelError(
                f"The run {path} has schema {schema!r} in run.json, but this version reads schema {SCHEMA} only: train "
                "it again, or use the version of Sightline that wrote it."
            )
        return run

    def lock(self) -> AbstractContextManager[object]:
        """Lock the run against other processes during a block; raises `OutputError` if one has locked it already."""
        return lock_run(self.path)

    def remove_partial_files(self) -> None:
        """Remove partially written files of a killed process; call it only while the run is locked."""
        _io.remove_partial_files(self.path)

    @property
    def checkpoints(self) -> Path:
        """The folder of the training checkpoints."""
        return self.path / "checkpoints"

    @property
    def info(self) -> dict[str, Any]:
        """The content of ``run.json``; raises `ModelError` without it, e.g. because the run was deleted."""
        require_run(self.path)
        return read_run_info(self.path / "run.json")

    @property
    def result(self) -> dict[str, Any]:
        """The result of a complete run; raises `ModelError` if it is missing."""
        return self.get_result(self.info)

    def get_result(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """Return the result in `info`, the content of ``run.json``; raises `ModelError` if it is missing."""
        result: dict[str, Any] | None = info.get("result")
        if result is None:
            raise ModelError(
                f"{self.path / 'run.json'} cannot be read: the run is complete, but its result is missing."
            )
        return result

    def update(self, *, drop: Sequence[str] = (), **values: Any) -> None:
        """Set keys of ``run.json``, and remove those in `drop`."""
        old = self.info if is_run(self.path) else {}
        self._write_json("run.json", {key: value for key, value in old.items() if key not in drop} | values)

    @property
    def is_locked(self) -> bool:
        """Whether a process has locked the run for writing."""
        return _locks.is_locked(self.path / LOCK_NAME)

    @property
    def has_config(self) -> bool:
        """Whether the configuration has been resolved."""
        return (self.path / "config.toml").exists()

    @property
    def config(self) -> RunConfig:
        """The resolved configuration."""
        require_run(self.path)
        return load_config(self.path / "config.toml")

    def write_config(self, config: RunConfig) -> None:
        """Save the resolved configuration, with comments."""
        self.write_file("config.toml", dump_toml(config).encode())

    def write_data(self, dataset: DecodedDataset) -> None:
        """Save the split of every image, its group if any, and the files that could not be read with reasons."""
        groups = dataset.groups or ("",) * len(dataset.images)
        used = zip(dataset.images, dataset.splits, groups, strict=True)
        lines: list[Mapping[str, Any]] = [
            ImageRow(p.path, p.sha256, p.label, split, group, dataset.hash_mask(p)).to_dict()
            for p, split, group in used
        ]
        lines += [{"path": r.path, "reason": r.reason} for r in dataset.unreadable]
        self.write_file("data.jsonl", jsonio.dump_lines(lines))

    def write_patch(self, source: str) -> None:
        """Save a copy of the patch at path `source`, unless that is empty."""
        if source:
            self.write_file("patch.jsonl", _io.read_regular(_io.expand_home(source), PATCH_LIMIT))

    @property
    def patch(self) -> Path | None:
        """The copy of the patch that was applied to the data; None without one."""
        path = self.path / "patch.jsonl"
        return path if path.exists() else None

    def read_data(self) -> tuple[ImageRow, ...] | None:
        """Return the images of the run, in the order of ``data.jsonl``; None before it is written."""
        rows = self._read_rows()
        return None if rows is None else tuple(row for row in rows if isinstance(row, ImageRow))

    def read_unreadable(self) -> tuple[UnreadableImage, ...]:
        """Return the files that could not be read, with reasons."""
        return tuple(row for row in self._read_rows() or () if isinstance(row, UnreadableImage))

    def _read_rows(self) -> tuple[ImageRow | UnreadableImage, ...] | None:
        path = self.path / "data.jsonl"
        return jsonio.read_records(path, _row_type) if path.exists() else None

    def write_leakage(self, leaks: Sequence[Leak], small: SmallImages | None) -> None:
        """Save the leakage between splits, and the small images used to detect it."""
        self.write_file("leakage.jsonl", jsonio.dump_lines([leak.to_dict() for leak in leaks]))
        if small is not None:
            self.write_file("thumbnails.npz", small.save)

    def read_leaks(self) -> tuple[Leak, ...]:
        """Return the groups of images in more than one split; empty if they were never searched for."""
        path = self.path / "leakage.jsonl"
        return jsonio.read_records(path, lambda _: Leak) if path.exists() else ()

    def read_small_images(self) -> SmallImages | None:
        """Return small versions of training and validation images; None if there were too many to save."""
        path = self.path / "thumbnails.npz"
        return SmallImages.load(path) if path.exists() else None

    def write_history(self, history: Sequence[EpochRecord]) -> None:
        """Save the epochs so far as JSON lines and as CSV."""
        rows = [asdict(r) for r in history]
        self.write_file("history.jsonl", jsonio.dump_lines(rows))
        if rows:
            text = io.StringIO()
            cells = [[escape_cell(value) for value in row.values()] for row in rows]
            CsvWriter(text).write_rows([list(rows[0]), *cells])
            self.write_file("history.csv", jsonio.encode_text(text.getvalue()))

    def read_history(self) -> tuple[EpochRecord, ...]:
        """Return the epochs so far."""
        path = self.path / "history.jsonl"
        return jsonio.read_records(path, lambda _: EpochRecord) if path.exists() else ()

    def write_model(self, model: Any, classes: Sequence[str], preprocess: PreprocessingSpec) -> None:
        """Save a Keras model with its classes and preprocessing spec."""
        _io.save_atomic(self.path / "model.keras", model.save, root=self.path)
        self._write_json("model.json", {"classes": list(classes), "preprocess": preprocess.to_dict()})

    @property
    def has_model(self) -> bool:
        """Whether weights have been saved."""
        return (self.path / "model.keras").exists() and (self.path / "model.json").exists()

    def read_model_spec(self) -> tuple[tuple[str, ...], PreprocessingSpec]:
        """Return the classes and the preprocessing spec of ``model.keras``."""
        path = self.path / "model.json"
        spec = jsonio.build(_ModelSpec, jsonio.read_object(path), str(path))
        try:
            check_classes(spec.classes, "the model")
            return spec.classes, PreprocessingSpec.from_dict(spec.preprocess)
        except ModelError as error:
            raise ModelError(f"{path} cannot be read: {error}.") from error

    @property
    def bundle(self) -> Path | None:
        """The folder of the bundle; None if there is none or it has other weights than the run."""
        folder = self.path / "bundle"
        return folder if (folder / "manifest.json").exists() and self.info.get("status") == "complete" else None

    def update_manifest(self, **changes: Any) -> None:
        """Change fields of the bundle's `Manifest`; its graph is unchanged."""
        bundle.update_manifest_file(self.path / "bundle", **changes)

    def write_bundle(self, new_bundle: Bundle) -> None:
        """Save the bundle, replacing an existing one."""
        bundle.write_folder(new_bundle, self.path / "bundle")

    def write_evaluation(
        self,
        split: str,
        evaluation: TaskResult,
        metrics: Mapping[str, Any] | None,
        values: Mapping[str, NDArray[Any]] | None,
    ) -> None:
        """Save metrics and probabilities of one split.

        For a full report, `metrics` are its metrics, and `values` the result of `list_image_values`.
        """
        self._write_json(f"eval/{split}/metrics.json", metrics or evaluation.to_dict())

        def save(file: IO[bytes]) -> None:
            np.savez(
                file,
                allow_pickle=False,
                paths=np.array(evaluation.paths, dtype=np.str_),
                labels=evaluation.labels,
                probabilities=evaluation.probabilities,
                classes=np.array(evaluation.classes, dtype=np.str_),
                **(values or {}),
            )

        self.write_file(f"eval/{split}/predictions.npz", save)

    def read_predictions(self, split: str) -> LabeledPredictions | None:
        """Return the predictions for the images of one split; None if it was not evaluated."""
        path = self.path / "eval" / split / "predictions.npz"
        if not path.exists():
            return None
        try:
            with _io.open_regular(path) as file:
                return parse_predictions(_packed.load_arrays(file))
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{path} cannot be read: {error}; evaluate the run again.") from error

    def write_thresholds(self, thresholds: Thresholds | None) -> None:
        """Save the abstention thresholds, or delete them."""
        if thresholds is None:
            (self.path / "thresholds.json").unlink(missing_ok=True)
        else:
            self._write_json("thresholds.json", thresholds.to_stored())

    def read_thresholds(self) -> Thresholds | None:
        """Return the abstention thresholds; None if they were never fitted."""
        path = self.path / "thresholds.json"
        if not path.exists():
            return None
        try:
            return Thresholds.from_dict(jsonio.read_object(path))
        except ValueError as error:
            raise ModelError(
                f"{path} cannot be read: {error}; fit them again with `sightline evaluate --target-precision`."
            ) from error

    def read_label_issues(self) -> tuple[PatchEntry, ...] | None:
        """Return the labels that may be wrong, worst first; None if they were never searched for."""
        path = self.path / "label_issues.jsonl"
        return jsonio.read_records(path, lambda _: PatchEntry) if path.exists() else None

    def read_figure(self, file: str) -> bytes | None:
        """Return a file under ``figures/``, None if it does not exist; raises `ModelError` if it is unreadable."""
        path = self.path / "figures" / file
        if not path.exists():
            return None
        try:
            return _io.read_regular(path, jsonio.MAX_BYTES)
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror or error}. Evaluate the run again.") from error

    @property
    def config_text(self) -> str:
        """The text of the resolved configuration, with comments."""
        return read_config_text(self.path / "config.toml")

    def write_figures(self, figures: Mapping[str, Mapping[str, bytes]]) -> None:
        """Save the figures of an evaluation, see `write_figure`, and remove earlier ones except the curves."""
        _io.refuse_links(self.path, self.path / "figures")  # never remove files through links
        for name, files in figures.items():
            self.write_figure(name, files)
        for old in (self.path / "figures").glob("*.*"):
            if old.name.partition(".")[0] not in {*figures, "curves"}:
                _io.remove(old)

    def clear_results(self) -> None:
        """Remove everything derived from previous weights of the run, before new ones are evaluated.

        Exports and compression searches, which the user created, are renamed instead.
        """
        self.update(drop=("message", "batch", "no_bundle_reason"))
        derived = ("report.html", "network.json", "thresholds.json", "label_issues.jsonl")
        for name in ("eval", "figures", "report", "bundle", *derived):
            _io.remove(self.path / name)
        for name in ("exports", "compressed"):
            if (self.path / name).exists():
                (self.path / name).rename(next_path(self.path, f"{name}-old"))

    def write_report(self, html: str) -> Path:
        """Save the report."""
        return self.write_file("report.html", html.encode(errors="backslashreplace"))

    def write_label_issues(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Save the labels that may be wrong, worst first."""
        self.write_file("label_issues.jsonl", jsonio.dump_lines(lines))

    def write_figure(self, name: str, files: Mapping[str, bytes]) -> None:
        """Save a figure under ``figures/``: the content of its files by suffix, such as ``png`` and ``svg``."""
        folder = self.path / "figures"
        _io.refuse_links(self.path, folder)
        for old in folder.glob(f"{name}.*"):  # never mix files of two figures
            _io.remove(old)
        for suffix, content in files.items():
            self.write_file(f"figures/{name}.{suffix}", content)

    def _write_json(self, name: str, value: Any) -> None:
        self.write_file(name, jsonio.encode_text(jsonio.dumps(value, indent=2) + "\n"))

    def write_file(self, name: str, content: bytes | Callable[[IO[bytes]], Any]) -> Path:
        """Save a file below the run, such as ``network.json``, and return its path."""
        return _io.write_atomic(self.path / name, content, root=self.path)


def _row_type(row: Mapping[str, Any]) -> type[ImageRow | UnreadableImage]:
    return UnreadableImage if "reason" in row else ImageRow
