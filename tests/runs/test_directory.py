"""Run directories are created, read back, rejected with clear messages, and never half-written."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from new_runs import create_run
from sightline.callbacks import EpochRecord
from sightline.config import resolve_config
from sightline.data.dataset import DecodedDataset
from sightline.data.recorded_images import ImageRow
from sightline.data.types import ImageRecord, UnreadableImage
from sightline.errors import ModelError, OutputError, UsageError
from sightline.evaluation.results import ClassMetrics, EvaluationResult
from sightline.intervals import Interval
from sightline.preprocessing import PreprocessingSpec
from sightline.runs.directory import SCHEMA, RunDirectory
from sightline.runs.paths import check_writable, next_path

HISTORY = (
    EpochRecord(1, "head", 1.5, 0.25, None, None, 1e-3, 2.0, 80.0),
    EpochRecord(2, 'fine-tune, "slowly"', 0.1 + 0.2, 1 / 3, 0.4, 0.5, 5e-324, 2.0, 90.0),
)

EVALUATION = EvaluationResult(
    ("ä", "b"), 0.75, Interval(0.5, 0.9), 0.5, 2, (ClassMetrics("ä", 1.0, 0.5, 0.5, 2),),
    (UnreadableImage("x.png", "truncated", "b"),), ("ä 1.png", "2.png"), np.array([0, 1], np.int32),
    np.array([[0.5, 0.5], [0.25, 0.75]], np.float32), 1.5, confusion=np.eye(2, dtype=np.int64),
)  # fmt: skip


def list_files(path: Path) -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


def build_dataset(paths: tuple[str, ...] = ("a/1.png", "b/ö 2.png")) -> DecodedDataset:
    images = tuple(ImageRecord(path, f"{i:064}", "ab"[i % 2], None, 4, 4) for i, path in enumerate(paths))
    count = len(paths)
    return DecodedDataset(
        "set", ("a", "b"), images, ("train", "validation") * (count // 2), np.arange(count, dtype=np.int32) % 2,
        np.zeros((count, 4, 4, 3), np.uint8), np.arange(count), (UnreadableImage("b/bad.png", "truncated", "b"),), 3,
        (), False,
    )  # fmt: skip


class FakeModel:
    """Saves like a Keras model, or fails."""

    def __init__(self, content: bytes = b"weights", error: BaseException | None = None) -> None:
        self.content, self.error = content, error

    def save(self, path: Path) -> None:
        assert path.suffix == ".keras", "Keras chooses the format by the suffix"
        path.write_bytes(self.content)
        if self.error:
            raise self.error


# Create and open


def test_new_run_is_running_and_opens(tmp_path: Path) -> None:
    run = create_run(tmp_path / "deep" / "er" / "run")
    assert list_files(run.path) == ["run.json"]
    expected = {"schema": SCHEMA, "status": "running", "command": sys.argv}
    assert RunDirectory.open(run.path).info == expected, "with the command, also if it fails before its first epoch"


def test_empty_folder_may_become_a_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert create_run(tmp_path / "run").info["status"] == "running"


def test_a_run_that_another_process_starts_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check_first(path: Path, *, force: bool) -> None:
        check_writable(path, force=force)
        monkeypatch.undo()
        create_run(path, seed=1)

    monkeypatch.setattr("sightline.runs.directory.check_writable", check_first)
    with pytest.raises(OutputError, match=r"run exists already and is not empty: choose another folder with --out"):
        create_run(tmp_path / "run", seed=2)
    assert RunDirectory.open(tmp_path / "run").info["seed"] == 1


@pytest.mark.parametrize("force", [False, True])
def test_a_run_is_locked_before_its_first_file_is_written(tmp_path: Path, force: bool) -> None:
    path = tmp_path / "run"
    with RunDirectory.create(path, seed=1), pytest.raises(OutputError):
        create_run(path, force=force, seed=2)
    assert RunDirectory.open(path).info["seed"] == 1


def test_existing_folder_is_refused(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    run.write_figure("curves", {"png": b"old"})
    with pytest.raises(OutputError, match=r"run exists already and is not empty: choose another folder with --out, or"):
        create_run(run.path)
    assert (run.path / "figures/curves.png").read_bytes() == b"old"


def test_force_replaces_a_run_and_nothing_else(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    run.write_figure("curves", {"png": b"old"})
    again = create_run(run.path, force=True)
    assert list_files(again.path) == ["run.json"]
    link = tmp_path / "link"
    link.symlink_to(run.path)
    with pytest.raises(OutputError, match=r"link is a link to .*run, and --force removes no folder through a link"):
        create_run(link, force=True)
    assert list_files(run.path) == ["run.json"]
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").write_bytes(b"dear")
    with pytest.raises(UsageError, match=r"photos is not a run, so --force does not remove it: choose another folder"):
        create_run(photos, force=True)
    assert (photos / "holiday.jpg").read_bytes() == b"dear"


def test_force_over_nothing_makes_a_run(tmp_path: Path) -> None:
    assert create_run(tmp_path / "new", force=True).info["status"] == "running"


@pytest.mark.parametrize("force", [False, True])
def test_a_file_is_rejected_as_the_place_of_a_run(tmp_path: Path, force: bool) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"notes")
    for place in (path, path / "below"):
        with pytest.raises(OutputError, match=r"is a file: choose a folder|is not writable"):
            create_run(place, force=force)
    assert path.read_bytes() == b"notes"


def test_unwritable_folder_is_reported_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        assert options["dir"] == tmp_path
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    message = r"is not writable: Permission denied\. Choose another folder with --out\."
    with pytest.raises(OutputError, match=message):
        check_writable(tmp_path / "not" / "yet" / "there")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_the_right_to_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="is not writable"):
            check_writable(tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


def test_checking_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "not" / "yet")
    assert list(tmp_path.iterdir()) == []


def test_unknown_schema_is_refused_by_name(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    for schema in (SCHEMA + 1, None, "1"):
        run.update(schema=schema)
        with pytest.raises(ModelError) as caught:
            RunDirectory.open(run.path)
        assert f"has schema {schema!r} in run.json, but this version reads schema {SCHEMA} only" in str(caught.value)


def test_a_run_of_schema_1_is_refused_with_what_to_do(tmp_path: Path) -> None:
    old = {
        "schema": 1, "status": "complete", "no_bundle": "it differs", "extended": [{"from": 1, "to": 2}],
        "result": {"bundle": None, "bundle_reason": "it differs", "rejects": 1, "test": None},
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(old))
    with pytest.raises(ModelError) as caught:
        RunDirectory.open(tmp_path)
    assert str(caught.value) == (
        f"The run {tmp_path} has schema 1 in run.json, but this version reads schema 2 only: train it again, or "
        "use the version of Sightline that wrote it."
    )


def test_a_folder_that_is_not_a_run_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a run: expected a folder written by `sightline train`, with"):
        RunDirectory.open(tmp_path)
    with pytest.raises(ModelError, match=r"^There is no folder .*absent: check the path of the run, which may have"):
        RunDirectory.open(tmp_path / "absent")
    for content in (b"{", b"\xff", b"[1]"):
        (tmp_path / "run.json").write_bytes(content)
        with pytest.raises(ModelError, match=r"run\.json (cannot be read|holds no JSON object)"):
            RunDirectory.open(tmp_path)


# What is written is read back


def test_updates_add_up(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    run.update(status="complete", figures={"accuracy": 0.9}, name="ä")
    run.update(figures={"loss": 1})
    expected = {"schema": SCHEMA, "status": "complete", "figures": {"loss": 1}, "name": "ä", "command": sys.argv}
    assert run.info == expected
    assert "ä" in (run.path / "run.json").read_text(encoding="utf-8"), "readable by people"


def test_configuration_comes_back(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    config = resolve_config({"train": {"stages": [{"name": "ä"}]}, "data": {"sources": ["C:\\bilder"]}})
    run.write_config(config)
    assert run.config == config
    assert "# images per step" in (run.path / "config.toml").read_text(encoding="utf-8")


def test_history_comes_back_and_the_table_says_the_same(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    assert run.read_history() == ()
    run.write_history(HISTORY[:1])
    run.write_history(HISTORY)
    assert run.read_history() == HISTORY
    with (run.path / "history.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (run.path / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [list(row) for row in rows] == [list(line) for line in lines]
    assert list(rows[0]) == [f.name for f in dataclasses.fields(EpochRecord)]
    for row, line in zip(rows, lines, strict=True):
        assert row == {key: "" if value is None else str(value) for key, value in line.items()}


def test_history_of_no_epoch(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    run.write_history([])
    assert run.read_history() == ()


def test_images_and_rejects_are_listed(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    run.write_data(build_dataset())
    lines = [json.loads(line) for line in (run.path / "data.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == [
        {"path": "a/1.png", "sha256": "0" * 64, "label": "a", "split": "train"},
        {"path": "b/ö 2.png", "sha256": "0" * 63 + "1", "label": "b", "split": "validation"},
        {"path": "b/bad.png", "reason": "truncated"},
    ]
    assert run.read_data() == tuple(ImageRow(**line) for line in lines[:2])
    assert [file.path for file in run.read_unreadable()] == ["b/bad.png"]


def test_groups_stand_in_the_rows_where_there_are_groups(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    run.write_data(replace(build_dataset(), groups=("patient 1", "patient 2")))
    lines = [json.loads(line) for line in (run.path / "data.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row.get("group") for row in lines] == ["patient 1", "patient 2", None]


def test_names_that_are_not_text_round_trip(tmp_path: Path) -> None:
    """A file name from an old Latin-1 disk, as decoded by `os.fsdecode`."""
    run = create_run(tmp_path / "run")
    odd = ("a/\udce9t\udce9.png", 'b/"\\\n\u2028.png')
    run.write_data(build_dataset(odd))
    lines = (run.path / "data.jsonl").read_text(encoding="utf-8").split("\n")
    assert tuple(json.loads(line)["path"] for line in lines[:2]) == odd
    run.update(odd=odd[0])
    assert run.info["odd"] == odd[0]
    assert len(run.read_data() or ()) == 2


@pytest.mark.parametrize("name", ["data.jsonl", "history.jsonl"])
def test_damaged_lines_are_reported(tmp_path: Path, name: str) -> None:
    run = create_run(tmp_path / "run")
    (run.path / name).write_bytes(b'{"path": "a.p')
    with pytest.raises(ModelError, match=rf"{name} cannot be read"):
        run.read_data() if name.startswith("data") else run.read_history()
    (run.path / name).unlink()
    assert not (run.read_data() if name.startswith("data") else run.read_history())


def test_model_and_its_facts_come_back(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    assert not run.has_model
    preprocess = PreprocessingSpec(height=32, width=48, channels=3)
    run.write_model(FakeModel(), ("ä", "b"), preprocess)
    assert run.has_model
    assert run.read_model_spec() == (("ä", "b"), preprocess)
    assert (run.path / "model.keras").read_bytes() == b"weights"


@pytest.mark.parametrize("content", [b"", b"{}", b'{"classes": 3}', b"[]", b"\xff"], ids=repr)
def test_damaged_model_facts_are_reported(tmp_path: Path, content: bytes) -> None:
    run = create_run(tmp_path / "run")
    (run.path / "model.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.json cannot be read"):
        run.read_model_spec()


@pytest.mark.parametrize("classes", [[], [""], ["a", "a"], ["a", "\ud800"]], ids=ascii)
def test_classes_that_no_bundle_may_have_are_refused(tmp_path: Path, classes: list[str]) -> None:
    run = create_run(tmp_path / "run")
    values = {"classes": classes, "preprocess": PreprocessingSpec(height=32, width=48, channels=3).to_dict()}
    (run.path / "model.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ModelError, match=r"model\.json cannot be read: the model(?: has 0|'s) classes"):
        run.read_model_spec()


def test_evaluation_is_written_whole(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    run.write_evaluation("test", EVALUATION, None, None)
    assert list_files(run.path / "eval") == ["test/metrics.json", "test/predictions.npz"]
    metrics = json.loads((run.path / "eval/test/metrics.json").read_text(encoding="utf-8"))
    assert metrics["accuracy"] == 0.75
    with np.load(run.path / "eval/test/predictions.npz", allow_pickle=False) as arrays:
        assert tuple(arrays["paths"]) == EVALUATION.paths
        assert tuple(arrays["classes"]) == EVALUATION.classes
        np.testing.assert_array_equal(arrays["labels"], EVALUATION.labels)
        np.testing.assert_array_equal(arrays["probabilities"], EVALUATION.probabilities)


def test_scores_and_slices_of_each_image_come_back(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    count = len(EVALUATION.paths)
    values = {
        "energies": np.linspace(-3, 1, count),
        "slice_names": np.array(["camera a"]),
        "slice_masks": np.arange(count)[None] > 0,
    }
    run.write_evaluation("test", EVALUATION, None, values)
    predictions = run.read_predictions("test")
    assert predictions is not None
    assert predictions.energies is not None
    assert predictions.energies.tolist() == values["energies"].tolist()
    assert {name: mask.tolist() for name, mask in predictions.slice_masks.items()} == {
        "camera a": [False] + [True] * (count - 1)
    }
    for name, broken in (("energies", np.zeros(count + 1)), ("slice_masks", np.zeros((2, count), bool))):
        run.write_evaluation("test", EVALUATION, None, values | {name: broken})
        with pytest.raises(ModelError, match="slice_masks have the wrong types or shapes"):
            run.read_predictions("test")


# Writing is atomic


def test_everything_is_written_aside_and_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create_run(tmp_path / "run")
    renamed: list[str] = []
    replace = Path.replace

    def spy(self: Path, target: Path) -> Path:
        assert self.name.startswith(".part-")
        renamed.append(target.relative_to(run.path).as_posix())
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", spy)
    run.write_config(resolve_config())
    run.write_data(build_dataset())
    run.write_history(HISTORY)
    run.write_model(FakeModel(), ("a", "b"), PreprocessingSpec(height=32, width=32, channels=3))
    run.write_evaluation("test", EVALUATION, None, None)
    run.write_figure("curves", {"png": b"png", "svg": b"svg"})
    run.update(status="complete")
    assert sorted(renamed) == list_files(run.path)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), ValueError("no such layer"), KeyboardInterrupt()],
    ids=lambda error: type(error).__name__,
)
def test_failed_write_leaves_the_old_file_and_no_half_one(tmp_path: Path, error: BaseException) -> None:
    run = create_run(tmp_path / "run")
    preprocess = PreprocessingSpec(height=32, width=32, channels=3)
    run.write_model(FakeModel(b"old"), ("a", "b"), preprocess)
    before = list_files(run.path)
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        run.write_model(FakeModel(b"half", error), ("a", "b"), preprocess)
    assert list_files(run.path) == before
    assert (run.path / "model.keras").read_bytes() == b"old"
    if isinstance(caught.value, OutputError):
        assert "model.keras cannot be written: No space left on device. Free some space" in str(caught.value)


def test_next_path_takes_the_first_free_number(tmp_path: Path) -> None:
    assert next_path(tmp_path, "quick-beans") == tmp_path / "quick-beans-1"
    (tmp_path / "quick-beans-1").mkdir()
    (tmp_path / "quick-beans-3").mkdir()
    (tmp_path / "quick-2").mkdir()
    assert next_path(tmp_path, "quick-beans") == tmp_path / "quick-beans-2"
    (tmp_path / "quick-beans-2").touch()
    assert next_path(tmp_path, "quick-beans") == tmp_path / "quick-beans-4"


def test_plots_of_another_evaluation_are_removed(tmp_path: Path) -> None:
    run = create_run(tmp_path / "r")
    run.write_figure("curves", {"png": b"of training", "svg": b"in words", "narrow.svg": b"on a phone"})
    run.write_figures({"confusion": {"png": b"1", "svg": b"one"}, "errors": {"png": b"1"}})
    run.write_figures({"confusion": {"png": b"2"}})
    assert {path.name: path.read_bytes() for path in (run.path / "figures").iterdir()} == {
        "curves.png": b"of training",
        "curves.svg": b"in words",
        "curves.narrow.svg": b"on a phone",
        "confusion.png": b"2",
    }
    assert run.read_figure("curves.narrow.svg") == b"on a phone"
    assert run.read_figure("errors.png") is None


def test_the_outcome_of_other_weights_goes_and_what_the_user_made_of_them_is_renamed(tmp_path: Path) -> None:
    run = create_run(tmp_path / "r", no_bundle="a reason", seed=1)
    removed_files = (
        "eval/test/metrics.json",
        "figures/curves.png",
        "bundle/manifest.json",
        "thresholds.json",
        "label_issues.jsonl",
    )
    kept_files = ("history.jsonl", "data.jsonl", "model.keras", "checkpoints/1.npz")
    for name in (*removed_files, *kept_files, "exports/onnx/model.onnx", "compressed/search.json", "exports-old-1/x"):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text("before")
    run.clear_results()
    run.clear_results()  # again, as for a run that was killed here
    remaining = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file()}
    renamed = {"exports-old-2/onnx/model.onnx", "compressed-old-1/search.json", "exports-old-1/x"}
    assert remaining == {*kept_files, *renamed, "run.json"}
    assert run.info["seed"] == 1
    assert "no_bundle_reason" not in run.info


@pytest.mark.skipif(os.name == "nt", reason="there are no named pipes in folders")
def test_a_plot_that_is_not_a_regular_file_is_reported(tmp_path: Path) -> None:
    run = create_run(tmp_path / "r")
    metrics = run.path / "figures"
    metrics.mkdir()
    os.mkfifo(metrics / "curves.png")
    with (metrics / "confusion.png").open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(ModelError, match=r"curves\.png cannot be read: not a regular file"):
        run.read_figure("curves.png")
    with pytest.raises(ModelError, match=r"confusion\.png cannot be read: more than"):
        run.read_figure("confusion.png")


@pytest.mark.skipif(os.name == "nt", reason="there are no named pipes in folders")
@pytest.mark.parametrize("make", [Path.touch, os.mkfifo], ids=["a file", "a pipe"])
def test_a_run_whose_folder_is_not_a_folder_is_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    run = create_run(tmp_path / "r")
    make(run.path / "figures")
    with pytest.raises(OutputError, match="figures is not a folder"):
        run.write_figures({"confusion": {"png": b"1"}})
