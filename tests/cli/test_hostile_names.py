"""Hostile names of classes, files and folders, in every command that shows them."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import sightline as sl
from command import TINY_SWEEP, Command, draw_classes
from hostile_names import CLASSES, check, check_page, list_images, read_csv
from sightline.api import training_process
from sightline.api.training import train_run
from sightline.escaping import escape_formula, printable
from sightline.inference import embedding_files
from sightline.inference.embeddings import join_embeddings
from watched_log import write_log

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such file names")

HOSTILE_NAME = "=1+1\\n\\x1b[2J\\u202e"  # as it is printed


@pytest.fixture
def data(hostile_images: Path) -> Path:
    return hostile_images


@pytest.fixture
def run(hostile_run: Path) -> Path:
    return hostile_run


def encode(name: str) -> str:
    """Return a file name as text that is valid UTF-8 has it."""
    return name.encode(errors="backslashreplace").decode()


def test_predict(sightline: Command, run: Path, data: Path) -> None:
    output_text = check(sightline("predict", run, data), 1)
    assert len(output_text.splitlines()) == len(list(list_images(data))), "one row per image, none forged"
    assert HOSTILE_NAME in output_text


def test_predict_csv(
    sightline: Command, run: Path, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(next(list_images(data)).parent)
    names = sorted(path.name for path in Path().iterdir())
    rows = read_csv(sightline("predict", run, *names, "--format", "csv").out)
    raw = read_csv(sightline("predict", run, *names, "--format", "csv", "--raw-csv").out)
    written = tmp_path / "out.csv"
    assert sightline("predict", run, *names, "--out", written).code == 1
    with written.open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == rows
    assert [row["path"] for row in raw] == list(map(encode, names))
    for row, plain in zip(rows, raw, strict=True):
        for key in row:
            assert row[key] == ("'" if plain[key][:1] in {"=", "@"} else "") + plain[key]
    assert any(row["path"].startswith("'=1+1\n") for row in rows)
    assert any(row["path"].startswith("'@broken\r") for row in rows)


def test_json_stays_as_it_is(sightline: Command, run: Path, data: Path) -> None:
    result = sightline("predict", run, data, "--format", "json")
    assert {line["path"] for line in result.lines} == {str(path) for path in list_images(data)}
    assert {c["label"] for line in result.lines if "top" in line for c in line["top"]} == set(CLASSES)


def test_evaluate_and_report(sightline: Command, run: Path) -> None:
    output_text = check(sightline("evaluate", run, "--split", "train"), 0)
    assert "=cmd|'calc'!A0\\nforged  blue" in output_text
    assert "<script>alert(2)<\\script> [b] [red]\\u009b1m" in output_text
    check(sightline("report", run), 0)
    text = check_page((run / "report.html").read_text(encoding="utf-8"))
    assert "&lt;script&gt;alert(2)" in text


def test_doctor(sightline: Command, data: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    output_text = check(sightline("doctor", data, "--html", page), 0)
    assert "@broken\\r.png" in output_text
    assert "&lt;img src=x onerror" in check_page(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "verb", ["model-card", "compare", "preview", "explain", "resume", "export", "describe", "compress"], ids=str
)
def test_other_commands(verb: str, sightline: Command, run: Path, data: Path, tmp_path: Path) -> None:
    image = next(list_images(data))
    other = tmp_path / "\x1b[2J\nforged"
    shutil.copytree(run, other)
    arguments: dict[str, list[object]] = {
        "model-card": [run], "compare": [run, other], "preview": [data, "--out", tmp_path / "\x1b[2J.png"],
        "explain": [run, image, "--out", tmp_path / "\x1b[2J"], "resume": [run], "export": [run, "--to", "vectors"],
        "describe": [run], "compress": [data],
    }  # fmt: skip
    result = sightline(verb, *arguments[verb])
    check(result, 0, 2 if verb in {"resume", "compress"} else 0)


def test_errors(sightline: Command, tmp_path: Path) -> None:
    for arguments in (
        ["predict", tmp_path / "\x1b[2J\n", "x"],
        ["train", tmp_path / "\x1b[2J\n"],
        ["train", "--\x1b[2J"],
        ["recipes", "\x1b[2J\u202e\n"],
        ["\x1b[2J"],
    ):
        assert "\\x1b[2J" in check(sightline(*arguments), 2)


def test_the_card_is_markdown_without_html(sightline: Command, run: Path) -> None:
    assert sightline("model-card", run).code == 0
    text = (run / "bundle" / "README.md").read_text(encoding="utf-8")
    assert printable(text, keep="\n") == text
    body = text.split("\n---\n")[1]
    assert "<" not in body
    assert "&lt;script>alert(2)" in body.replace("\\", "")


def test_files_that_the_run_holds_are_json_still(run: Path) -> None:
    for path in run.glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("suffix", ["parquet", "npy", "csv"])
def test_embed(suffix: str, sightline: Command, run: Path, data: Path, tmp_path: Path) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"\x1b[2J\nforged.{suffix}"
    assert f"\\x1b[2J\\nforged.{suffix}" in check(sightline("embed", run, data, "--out", out), 1)
    embeddings = join_embeddings(list(embedding_files.open_file(out).iterate()), 0, "")
    assert sorted(map(encode, embeddings.paths)) == sorted(encode(str(path)) for path in list_images(data))
    check(sightline("embed", run, data, "--labeled", "--out", out), 0, 1)
    embeddings = join_embeddings(list(embedding_files.open_file(out).iterate()), 0, "")
    assert set(embeddings.labels) == set(CLASSES)
    result = sightline("similar", run, next(list_images(data)), out)
    assert HOSTILE_NAME in check(result, 0) or "@broken" not in result.out


def test_formulas_in_tables_of_embeddings_become_text(
    sightline: Command, run: Path, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(next(list_images(data)).parent)
    names = sorted(path.name for path in Path().iterdir())
    cells = []
    for options in ([], ["--raw-csv"]):
        out = tmp_path / "out.csv"
        assert sightline("embed", run, *names, "--out", out, *options).code == 1
        with out.open(encoding="utf-8", newline="") as file:
            cells.append([row["path"] for row in csv.DictReader(file)])
        embeddings = join_embeddings(list(embedding_files.open_file(out).iterate()), 0, "")
        assert list(embeddings.paths) == cells[-1] or options == []
    assert cells[1] == list(map(encode, names))
    assert cells[0] == ["'" * (cell[0] in "=@") + cell for cell in cells[1]]


def test_similar(sightline: Command, run: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label = next(iter(CLASSES))
    count = 2 * len(list((data / label).iterdir()))
    text = check(sightline("similar", run, data / label, data, "--top", 60), 1)
    assert HOSTILE_NAME in text
    assert "@broken\\r.png" in text
    result = sightline("similar", run, data / label, data, "--top", 1, "--format", "json")
    assert {line["image"] for line in result.lines} == {str(path) for path in (data / label).iterdir()}
    assert len(text.splitlines()) > count
    monkeypatch.chdir(data / label)
    name = min(path.name for path in Path().glob("=*"))
    for options, image in (((), f"'{name}"), (("--raw-csv",), name)):
        rows = read_csv(sightline("similar", run, name, "*.png", "--format", "csv", *options).out)
        assert {row["image"] for row in rows} == {encode(image)}


def test_add_class(sightline: Command, run: Path, data: Path, tmp_path: Path) -> None:
    label = "=1\n\x1b[2Jforged\u202e"
    images, outs = sorted((data / next(iter(CLASSES))).glob("[!@]*")), (tmp_path / "a", tmp_path / "b\x1b[2J\nforged")
    text = check(sightline("add-class", run, label, *images, "--out", outs[0]), 0)
    assert "=1\\n\\x1b[2Jforged\\u202e, the last of 5" in text
    added = sightline("add-class", run, label, *images, "--out", outs[1], "--format", "json").json
    assert added["label"] == label
    assert added["classes"] == [*sl.load(run).classes, label]
    check(sightline("predict", outs[1], images[0]), 0)
    check(sightline("add-class", run, label, *images), 0)
    (folder,) = run.glob("with-*")
    assert printable(folder.name) == folder.name
    shutil.rmtree(folder)
    folder, out = data / next(iter(CLASSES)), tmp_path / "c"
    assert "red/@broken\\r.png: " in check(sightline("add-class", run, label, folder, "--out", out), 0)


def test_watch(sightline: Command, run: Path, data: Path, tmp_path: Path) -> None:
    classifier, log = sl.load(run), tmp_path / "\x1b[2J\nforged.log"
    images = [path for path in sorted(list_images(data)) if "@broken" not in path.name]
    pixels = np.stack([classifier.preprocess.decode(path.read_bytes()) for path in images])
    write_log(classifier, log, pixels)
    figure = tmp_path / "\x1b[2J\nforged.png"
    options = ("--reference", data, "--top", 8)
    text = check(sightline("watch", log, run, *options, "--figure", figure), 0, 1)
    assert "\\x1b[2J\\nforged.png" in text
    result = sightline("watch", log, run, *options, "--format", "json")
    labels = {image["label"] for image in result.json["label_first"]}
    assert labels <= set(CLASSES)
    rows = read_csv(sightline("watch", log, run, *options, "--format", "csv").out)
    assert {row["label"] for row in rows} == {escape_formula(label) for label in labels}
    lines = log.read_bytes().splitlines(keepends=True)
    forged = {**json.loads(lines[1]), "id": "\x1b[2J\nforged", "time": "2026-11-26T21:52:19Z\nforged"}
    log.write_bytes(b"".join([lines[0], json.dumps(forged).encode() + b"\n", *lines[2:]]))
    check(sightline("watch", log, run, *options), 0, 1, 2)
    header = {**json.loads(lines[0]), "classes": ["\x1b[2J\nforged", *CLASSES]}
    log.write_bytes(b"".join([json.dumps(header).encode() + b"\n", *lines[1:]]))
    check(sightline("watch", log, run, *options), 2)


@pytest.mark.slow
def test_sweep(sightline: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_process, "train_in_subprocess", train_run)
    space = tmp_path / "=\x1b[2J\nforged.toml"
    space.write_text(
        TINY_SWEEP.replace("epochs = 3", "epochs = 1")
        + '[space]\nmodel.weights = ["none", "\\u001b[2J\\nforged\\u202e.keras"]\n'
        "train.optimizer.learning_rate = [1e-3]\n",
        encoding="utf-8",
    )
    out = tmp_path / "\x1b[2J\nforged"
    text = check(sightline("sweep", data, space, "--out", out), 0)
    assert "\\x1b[2J\\nforged\\u202e.keras" in text
    assert "failed" in text
    result = sightline("sweep", data, space, "--out", out, "--format", "json").json
    assert "\x1b[2J\nforged\u202e.keras" in {trial["settings"]["model.weights"] for trial in result["trials"]}
    for path in out.rglob("*.svg"):
        assert printable(text := path.read_text(encoding="utf-8"), keep="\n") == text
    rows = read_csv(sightline("sweep", data, space, "--out", out, "--format", "csv").out)
    assert len(rows) == 2
    check(sightline("sweep", data, tmp_path / "\x1b[2J\nmissing.toml"), 2)


@pytest.mark.slow
def test_learning_curve(sightline: Command, data: Path, tmp_path: Path) -> None:
    options = ("--set", "input.height=32", "--no-cache")
    assert "4 classes have fewer" in check(sightline("learning-curve", data, *options), 2), "and names them"
    more, figure = draw_classes(tmp_path / "\x1b[2J\nforged", CLASSES, 24), tmp_path / "\x1b[2J\nforged.png"
    text = check(sightline("learning-curve", more, *options, "--figure", figure), 0)
    assert "\\x1b[2J\\nforged.png" in text
    assert figure.is_file()
