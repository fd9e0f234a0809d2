"""The options for how sources are read, which are the same in every command that reads images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from command import SMALL, Command
from sightline.runs.directory import RunDirectory
from sightline.runs.train_request import TrainRequest
from synthetic_images import encode_png, write_files

pytestmark = pytest.mark.usefixtures("plain_figures")

NAMES = ("cat", "dog")


SPACE = """
recipe = "quick"
[settings]
model.name = "cifar10-simple"
model.hidden_units = [64]
train.epochs = 1
[space]
seed = [1]
"""


def write_split_folders(root: Path, train: str = "train", test: str = "test") -> Path:
    """Write two folders named like splits, with images whose names say nothing."""
    return write_files(
        root, {f"{split}/{i}.png": encode_png(i, k) for k, split in enumerate((train, test)) for i in range(22)}
    )


def write_manifest(root: Path, name: str = "list.csv", first: int = 0) -> Path:
    """Write a manifest with custom column names, and its images."""
    images = {f"{label}-{i}": (i, label) for i in range(first, first + 24) for label in NAMES}
    write_files(root, {f"{name}.png": encode_png(i, NAMES.index(label)) for name, (i, label) in images.items()})
    lines = ["Bild;Art;Rest", *(f"{name};{label};{i % 5}" for name, (i, label) in images.items())]
    (root / name).write_text("\n".join(lines), encoding="utf-16")
    return root / name


COLUMNS = ("--column", "path=Bild", "--column", "label=Art")


def test_folders_that_look_like_splits_stop_training_and_are_named(sightline: Command, tmp_path: Path) -> None:
    source, out = write_split_folders(tmp_path / "data", "training_set", "test_set"), tmp_path / "run"
    result = sightline("train", source, *SMALL, "--out", out)
    assert (result.code, out.exists()) == (2, False)
    last = result.err.strip().splitlines()[-1]
    assert last.startswith(
        "error: split-folders: 2 folders are read as classes but look like splits (test_set: named like the test "
        "split; training_set: named like the train split). For splits"
    )
    assert last.endswith("--allow split-folders uses them as classes.")
    assert sightline("train", source, *SMALL, "--out", out, "--allow", "split-folder").code == 2
    doctor = sightline("doctor", source, "--strict", "--format", "json")
    assert (doctor.code, doctor.json["findings"][0]["kind"]) == (1, "split-folders")
    assert sightline("doctor", source, "--strict", "--allow", "split-folders").code == 0


def test_what_is_allowed_stays_allowed_when_a_run_goes_on(sightline: Command, tmp_path: Path) -> None:
    source, out = write_split_folders(tmp_path / "data"), tmp_path / "run"
    result = sightline(
        "train", source, *SMALL, "--set", "train.epochs=1", "--out", out,
        "--allow", "split-folders", "--allow", "conflicting-duplicates",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert RunDirectory.open(out).config.data.allow_findings == ("split-folders", "conflicting-duplicates")
    info = json.loads((out / "run.json").read_text(encoding="utf-8"))
    info["status"] = "interrupted"
    (out / "run.json").write_text(json.dumps(info), encoding="utf-8")
    (out / "config.toml").unlink()  # as if it was killed before the configuration was resolved
    assert sightline("resume", out).code == 0
    assert sorted(RunDirectory.open(out).read_model_spec()[0]) == ["test", "train"]


@pytest.mark.slow
def test_columns_of_a_manifest_are_named_for_every_command(
    sightline: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_manifest(tmp_path / "data")
    result = sightline("doctor", source)
    assert (result.code, "its columns are Bild, Art, Rest" in result.err) == (2, True)
    assert sightline("doctor", source, *COLUMNS, "--format", "json").json["classes"] == {"cat": 24, "dog": 24}
    outcome = sightline("preview", source, *COLUMNS, "--out", tmp_path / "grid.png", "--format", "json")
    assert outcome.json["classes"] == ["cat", "dog"]
    out = tmp_path / "run"
    result = sightline("train", source, *SMALL, "--set", "train.epochs=1", *COLUMNS, "--out", out, "--format", "json")
    assert result.code == 0, result.err
    assert sightline("evaluate", out, "--format", "json").json["count"] == result.json["test"]["count"]
    other = write_manifest(tmp_path / "other", first=100)
    assert sightline("evaluate", out, other, *COLUMNS, "--format", "json").json["count"] == 48
    assert "its columns are Bild, Art, Rest" in sightline("evaluate", out, other).err
    result = sightline("export", out, "--parity", other, *COLUMNS, "--format", "json")
    assert result.json["parity"]["count"] == 48, result.err
    assert "its columns are Bild, Art, Rest" in sightline("compress", out, "--data", other).err
    assert sightline("compress", out, "--data", other, *COLUMNS, "--methods", "float16").code == 0
    assert "name some, or leave these options out" in sightline("evaluate", out, *COLUMNS).err


@pytest.mark.slow
def test_a_sweep_reads_its_images_as_configured(sightline: Command, tmp_path: Path) -> None:
    source = write_files(
        tmp_path / "data",
        {f"{top}/{label}/{i}.png": encode_png(i, k) for top in "ab" for k, label in enumerate(NAMES) for i in range(8)},
    )
    space = tmp_path / "space.toml"
    space.write_text(SPACE, encoding="utf-8")
    result = sightline(
        "sweep", source, space, "--out", tmp_path / "sweep", "--set", "data.class_level=2", "--format", "json"
    )
    assert result.code == 0, result.err
    assert sorted(RunDirectory.open(tmp_path / "sweep" / "trial-0001").read_model_spec()[0]) == ["cat", "dog"]
    again = sightline("sweep", source, space, "--out", tmp_path / "sweep")
    assert (again.code, "data.class_level=2" in again.err) == (2, True)  # trials with other data are not comparable


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--column", "label"], "--column expects ROLE=NAME such as label=breed, not 'label'."),
        (["--column", "lable=x"], "--column: unknown role 'lable'. Did you mean 'label'?"),
        (["--set", "train.epochs=2"], "--set accepts only settings that begin with data. or input. or"),
        (["--set", "data.class_level=top"], "data.class_level expects a whole number or leaf, not 'top'."),
        (["--set", "data.class_level=0"], "data.class_level must be at least 1, not 0."),
    ],
)
def test_mistakes_in_reading_options_are_reported(
    sightline: Command, tmp_path: Path, arguments: Sequence[str], message: str
) -> None:
    result = sightline("doctor", write_split_folders(tmp_path), *arguments)
    assert (result.code, message in result.err) == (2, True), result.err


def test_a_file_of_a_model_is_not_taken_for_images(sightline: Command, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"weights")
    result = sightline("train", tmp_path / "model.onnx")
    assert result.code == 2
    assert "model.onnx is a model, not labeled images: `sightline evaluate" in result.err


@pytest.mark.parametrize("command", ["compress", "evaluate", "export"])
def test_commands_that_take_only_settings_of_the_data_say_so(sightline: Command, command: str) -> None:
    text = " ".join(sightline(command, "--help").out.split())
    assert "--set KEY=VALUE Set how files and classes are read, data.NAME, e.g. data.class_level=2" in text


def test_files_that_settings_name_are_reached_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path / "here", {"labels.csv": b"id,label\n", "images/1.png": encode_png()})
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    request = TrainRequest.create("images", "quick", None, ["data.labels=labels.csv", "data.root=images"])
    assert request.with_relative_paths(request.merge_layers()).data.labels == "labels.csv"
    monkeypatch.chdir(tmp_path / "there")
    data = request.with_relative_paths(request.merge_layers()).data
    assert (data.labels, data.root) == (str(tmp_path / "here" / "labels.csv"), str(tmp_path / "here" / "images"))


@pytest.mark.parametrize("verb", ["train", "doctor", "evaluate", "report"])
def test_a_name_that_no_file_can_have_is_refused(sightline: Command, verb: str) -> None:
    result = sightline(verb, 300 * "a")
    assert result.code == 2
    assert "aaaaaaaa" in result.err
    assert "Internal error" not in result.err


def test_an_image_whose_name_no_file_can_have_is_one_that_cannot_be_read(sightline: Command) -> None:
    result = sightline("predict", "imagenet", 300 * "a", "--format", "json")
    assert (result.code, result.lines[0]["error"]) == (1, "cannot be opened: File name too long")
    assert "Internal error" not in result.err
