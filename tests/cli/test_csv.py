"""`--format csv` of the commands whose result is a table: it parses, and agrees with `--format json`."""

from __future__ import annotations

import csv
import inspect
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from command import SPACE, Command
from sightline import cli
from sightline.cli.output import RawCsv, print_csv

pytestmark = pytest.mark.usefixtures("plain_figures")

Row = dict[str, Any]


@pytest.fixture(scope="module")
def places(trained: tuple[Path, Row], colors: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs and their images, a folder of images with problems, and a search space, by the words of `TABLES`."""
    from sightline.api.training import train_run

    folder = tmp_path_factory.mktemp("csv")
    settings = ["model.name=cifar10-simple", "model.hidden_units=[64]", "train.epochs=1"]
    train_run(colors, recipe="quick", set=settings, out=folder / "run-2")
    for label in ("=red", "blue"):
        (folder / "photos" / label).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)  # the same in both classes
            Image.fromarray(pixels).save(folder / "photos" / label / f"{i}.png")
    (folder / "photos" / "blue" / "=broken.png").write_bytes(b"not an image")
    (folder / "space.toml").write_text(SPACE)
    return {
        "run": trained[0], "colors": colors, "run-2": folder / "run-2", "photos": folder / "photos",
        "space": folder / "space.toml",
    }  # fmt: skip


def list_runs(result: Any) -> Iterator[Row]:
    for row in result["runs"]:
        low, high = row.pop("accuracy_interval")
        yield {**row, "low": low, "high": high, **row["settings"]}


def list_trials(result: Any) -> Iterator[Row]:
    for trial in result["trials"]:
        low, high = trial["interval"]
        yield {**trial, "low": low, "high": high, result["monitor"]: trial["value"], **trial["settings"]}


def list_metrics(result: Any) -> Iterator[Row]:
    for name, metric in result["metrics"].items():
        low, high = metric["interval"] or (None, None)
        yield {**metric, "metric": name, "low": low, "high": high, "count": result["count"]}


def list_findings(result: Any) -> Iterator[Row]:
    empty = {"group": None, "path": None, "label": None, "reason": None}
    for finding in result["findings"]:
        start = {**finding, **empty, "finding": f"{finding['count']} {finding['description']}"}
        for number, group in enumerate(finding.get("groups", ())):
            for path, label in zip(group, finding["labels"][number], strict=True):
                yield {**start, "group": number + 1, "path": path, "label": label}
        reasons = finding.get("reasons") or [None] * len(finding.get("paths", ()))
        for path, reason in zip(finding.get("paths", ()), reasons, strict=True):
            yield {**start, "path": path, "reason": reason}


TABLES: dict[str, tuple[tuple[str, ...], Callable[[Any], Any], tuple[str, ...]]] = {
    "models": ((), lambda result: result["models"], ("name", "input_size", "pretrained")),
    "recipes": ((), lambda result: result["recipes"], ("name", "description")),
    "describe": (("vgg16", "--classes", "10"), lambda result: result["layers"], ("name", "output", "multiply_adds")),
    "compare": (("run", "run-2"), list_runs, ("run", "accuracy", "low", "high", "seconds", "train.epochs")),
    "evaluate": (("run",), list_metrics, ("metric", "value", "low", "high", "count")),
    "doctor": (("photos",), list_findings, ("severity", "kind", "group", "path", "label", "reason")),
    "sweep": (
        ("colors", "space"),
        list_trials,
        ("trial", "validation.accuracy", "accuracy", "train.optimizer.learning_rate", "run"),
    ),
}
"""Of each command: its arguments, the rows in its JSON, and columns that must be there."""


@pytest.mark.parametrize(
    "verb", [pytest.param(verb, marks=pytest.mark.slow if verb == "sweep" else ()) for verb in TABLES]
)
def test_the_csv_agrees_with_the_json(
    sightline: Command,
    places: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    words, list_rows, required_columns = TABLES[verb]
    arguments = [places.get(word, word) for word in words]
    result = sightline(verb, *arguments, "--format", "json")
    assert result.code == 0
    expected_rows = list(list_rows(result.json))
    printed = sightline(verb, *arguments, "--format", "csv")
    assert (printed.code, printed.err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert len(rows) == len(expected_rows) > 1
    assert set(required_columns) <= set(rows[0])
    for row, expected in zip(rows, expected_rows, strict=True):
        assert {name: read_cell(cell, expected[name]) for name, cell in row.items()} == {
            name: expected[name] for name in row
        }


def read_cell(cell: str, expected: Any) -> Any:
    """Return the value of a cell: text without the apostrophe of a formula, else JSON."""
    if isinstance(expected, str):
        return cell.removeprefix("'")
    return json.loads(cell) if cell else None


def test_a_finding_on_hostile_names_is_not_a_formula(sightline: Command, places: dict[str, Path]) -> None:
    printed = sightline("doctor", places["photos"], "--format", "csv").out
    paths = {row["path"] for row in csv.DictReader(io.StringIO(printed))}
    assert "'=red/0.png" in paths
    assert not any(path.startswith("=") for path in paths)
    raw = sightline("doctor", places["photos"], "--format", "csv", "--raw-csv").out
    assert {row["path"] for row in csv.DictReader(io.StringIO(raw))} == {path.removeprefix("'") for path in paths}


def test_every_command_that_writes_csv_takes_the_same_option() -> None:
    commands = [command.callback for command in cli.app.registered_commands]
    hints = {f.__name__: inspect.get_annotations(f, eval_str=True, locals=vars(sys.modules[f.__module__]))
             for f in commands if f is not None}  # fmt: skip
    tables = {name for name, types in hints.items() if "'csv'" in str(types.get("output_format"))}
    assert {"predict", "compare"} <= tables
    assert {name for name, types in hints.items() if "raw_csv" in types} == tables | {"embed", "studio"}
    assert {types["raw_csv"] for types in hints.values() if "raw_csv" in types} == {RawCsv}


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["recipes", "--raw-csv"], "--format csv"),
        (["models", "--format", "json", "--raw-csv"], "--format csv"),
        (["predict", "gone", "1.jpg", "--raw-csv", "--out", "a.jsonl"], "--format csv"),
        (["embed", "gone", "1.jpg", "--raw-csv", "--out", "a.parquet"], "--out FILE.csv"),
    ],
)
def test_an_option_of_csv_is_refused_where_none_is_written(
    sightline: Command, arguments: Sequence[str], advice: str
) -> None:
    refused = sightline(*arguments)
    assert refused.code == 2
    assert refused.err.strip() == (
        f"error: --raw-csv is for CSV, which is not written here: give {advice} as well, or leave it out."
    )


@pytest.mark.parametrize(
    "arguments", [["predict", "--out", "a.csv"], ["predict", "--format", "csv"], ["embed", "--out", "A.CSV"]]
)
def test_the_option_of_csv_is_taken_where_it_is_written(sightline: Command, arguments: Sequence[str]) -> None:
    verb, *options = arguments
    assert "--raw-csv" not in sightline(verb, "gone", "1.jpg", "--raw-csv", *options).err


def test_cells_hold_text_numbers_and_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for raw, start in ((False, "'"), (True, "")):
        print_csv(["a", "b", "c", "d", "=e"], [["-1 cat", -1.5, None, float("nan"), (1, 2)]], raw=raw)
        assert capsys.readouterr().out == f'a,b,c,d,{start}=e\n{start}-1 cat,-1.5,,,"[1, 2]"\n'


def test_a_recipe_is_not_a_table(sightline: Command) -> None:
    result = sightline("recipes", "transfer", "--format", "csv")
    assert (result.code, result.out) == (2, "")
    assert "leave out the name" in result.err
