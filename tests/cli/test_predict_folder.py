"""`sightline predict --out NAME.parquet` and `Classifier.write_predictions`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq  # type: ignore[import-untyped]  # it has no types
import pytest

import sightline as sl
from command import COLORS, Command, draw_classes
from sightline import process
from sightline.api import prediction_folder
from waiting import wait_until

Trained = tuple[Path, dict[str, Any]]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Nine new images, and a damaged one, in a folder."""
    folder = draw_classes(tmp_path / "images", COLORS, 3)
    (folder / "red" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n, then nothing")
    return folder


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let parts be as small as two images: they consist of whole batches."""
    monkeypatch.setattr(prediction_folder, "choose_batch_size", lambda _shape, **_: 2)


def read_files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("options", [(), ("--top", "2"), ("--probabilities",)], ids=" ".join)
def test_the_folder_holds_the_rows_of_predict(
    options: tuple[str, ...], sightline: Command, trained: Trained, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.parquet"
    result = sightline("predict", trained[0], images, "--out", out, *options)
    assert (result.code, result.out) == (1, "")
    assert result.err == f"10 images, 1 of them failed: {out}\n"
    rows = sightline("predict", trained[0], images, "--format", "json", *options).lines
    for stored, row in zip(pq.read_table(out).to_pylist(), rows, strict=True):
        assert stored["path"] == row["path"]
        assert stored["error"] == row.get("error")
        if "label" in row:
            assert stored["label"] == row["label"]
            assert stored["probability"] == pytest.approx(row["probability"], abs=1e-6)
            assert [cell["label"] for cell in stored["top"]] == [cell["label"] for cell in row["top"]]
        if "probabilities" in row:
            assert stored["probabilities"] == pytest.approx(list(row["probabilities"].values()), abs=1e-6)
    pandas = pytest.importorskip("pandas")
    assert list(pandas.read_parquet(out)["path"]) == [row["path"] for row in rows]


@pytest.mark.parametrize("is_short", [True, False])
def test_a_machine_with_another_memory_goes_on(
    trained: Trained, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_short: bool
) -> None:
    model = sl.load(trained[0])
    monkeypatch.setattr(process, "is_memory_short", lambda: is_short)
    model.write_predictions(images, tmp_path / "p.parquet", shard="0/2")
    monkeypatch.setattr(process, "is_memory_short", lambda: not is_short)
    assert model.write_predictions(images, tmp_path / "p.parquet", shard="1/2").is_complete


@pytest.mark.usefixtures("small_batches")
def test_shards_of_the_command_line_and_python_fill_one_folder(
    sightline: Command, trained: Trained, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.parquet"
    options = ("--rows-per-part", "1", "--top", "3")
    first = sightline("predict", trained[0], images, "--out", out, "--shard", "0/2", *options)
    assert first.err == f"6 images of 10, shard 0/2: {out}; other shards are not complete yet\n"
    assert first.code == 0
    second = sl.load(trained[0]).write_predictions(images, out, top=3, shard="1/2", rows_per_part=1)
    assert (second.images, second.failed, second.total, second.is_complete) == (4, 1, 10, True)
    whole = sightline("predict", trained[0] / "bundle", images, "--out", tmp_path / "whole.parquet", *options)
    assert whole.code == 1
    assert read_files(out) == read_files(tmp_path / "whole.parquet"), "of a run and of its bundle, in parts of two"
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("part-*")}
    again = sightline("predict", trained[0], images, "--out", out, *options)
    assert again.err == f"10 images, 1 of them failed: {out}\n"
    assert {file.name: file.stat().st_mtime_ns for file in out.glob("part-*")} == before


def test_neighbors_of_another_reference_do_not_go_on(
    sightline: Command, trained: Trained, images: Path, tmp_path: Path
) -> None:
    sightline("embed", trained[0], images, "--labeled", "--out", tmp_path / "reference.npy")
    other = draw_classes(tmp_path / "other", COLORS, 2)
    arguments = ("predict", trained[0], images, "--knn", "2", "--out", tmp_path / "p.parquet")
    assert sightline(*arguments, "--reference", tmp_path / "reference.npy").code == 1
    assert sightline(*arguments, "--reference", tmp_path / "reference.npy").code == 1
    result = sightline(*arguments, "--reference", other)
    assert result.code == 2
    assert "was written with another setting of model" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "p.parquet", "--shard", "2/2"), "A shard is I/N, from 0/N to N-1/N"),
        (("--out", "p.parquet", "--format", "csv"), "so --format does not apply"),
        (("--out", "p.csv", "--shard", "0/2"), "give --out NAME.parquet"),
        (("--rows-per-part", "8"), "give --out NAME.parquet"),
        (("--out", "p.csv", "--engine", "ray"), "--engine ray: only for a folder of Parquet files"),
        (
            ("--out", "p.parquet", "--ray-address", "auto"),
            "--ray-address cannot be combined with --engine local: add --engine ray",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_options_that_contradict_each_other(
    arguments: tuple[str, ...], message: str, sightline: Command, images: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    result = sightline("predict", "no-model", images, *arguments)
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "p.parquet").exists()


def test_a_list_on_standard_input(
    sightline: Command, trained: Trained, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.txt").write_text("\n".join(map(str, sorted(images.glob("blue/*")))))
    with (tmp_path / "list.txt").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert sightline("predict", trained[0], "-", "--out", tmp_path / "p.parquet").code == 0
    assert len(pq.read_table(tmp_path / "p.parquet")) == 3


def wait_for_parts(out: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until so many parts are written, or the process has ended."""
    wait_until(lambda: len(list(out.glob("part-*"))) >= count or process.poll() is not None)


@pytest.mark.slow
def test_a_job_that_is_killed_again_and_again_ends_with_the_same_files(
    trained: Trained, colors: Path, tmp_path: Path
) -> None:
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "sightline",
        "predict",
        trained[0],
        *[colors] * 16,
        "--rows-per-part",
        "128",
    ]
    out = tmp_path / "p.parquet"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    kills = 0
    for _ in range(8):
        with subprocess.Popen([*command, "--out", out], env=environment) as process:
            wait_for_parts(out, len(list(out.glob("part-*"))) + 2, process)
            process.send_signal(signal.SIGKILL)
        kills += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            break
    assert kills >= 2
    subprocess.run([*command, "--out", tmp_path / "whole.parquet"], env=environment, check=True)
    subprocess.run([*command, "--out", out], env=environment, check=True)
    names = sorted(name for name in read_files(out) if not name.startswith(".part-"))  # a killed process leaves one
    files, whole = read_files(out), read_files(tmp_path / "whole.parquet")
    assert {name: files[name] for name in names} == whole
    assert len(pq.read_table(out)) == 1920
