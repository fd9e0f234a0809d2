"""The commands evaluate, predict and the lists as a user sees them."""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from command import Command
from recording import RecordingCallback
from sightline import backend, load
from sightline._keras import accelerators
from sightline.errors import DataError
from sightline.inference import bundle
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.runs import environment
from synthetic_images import write_zip

pytestmark = pytest.mark.usefixtures("plain_figures")


@pytest.fixture
def run(trained: tuple[Path, dict[str, Any]]) -> Path:
    return trained[0]


def test_predict_json_is_one_object_a_line_in_order(sightline: Command, run: Path, colors: Path) -> None:
    result = sightline("predict", run, colors / "red", "--format", "json")
    assert result.code == 0
    assert [line["path"] for line in result.lines] == [str(p) for p in sorted((colors / "red").iterdir())]
    for line in result.lines:
        assert set(line) == {"path", "label", "probability", "top"}
        assert line["top"][0] == {"label": line["label"], "probability": line["probability"]}
        assert sum(c["probability"] for c in line["top"]) == pytest.approx(1, abs=1e-5)
    assert result.lines[0]["probability"] >= result.lines[0]["top"][1]["probability"]


def test_an_unreadable_file_is_a_row_and_sets_the_exit_code(
    sightline: Command, run: Path, colors: Path, tmp_path: Path
) -> None:
    good = tmp_path / "good image 图.png"
    shutil.copy(next((colors / "blue").iterdir()), good)
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff")
    result = sightline("predict", run, good, bad, tmp_path / "none.png", good, "--format", "json", "--top", "1")
    assert result.code == 1
    assert [set(line) for line in result.lines] == [
        {"path", "label", "probability", "top"}, {"path", "error"}, {"path", "error"},
        {"path", "label", "probability", "top"},
    ]  # fmt: skip
    assert len(result.lines[0]["top"]) == 1
    assert result.lines[0] | {"path": ""} == result.lines[3] | {"path": ""}
    table = sightline("predict", run, good, bad)
    assert table.code == 1
    assert "图.png" in table.out
    assert table.out.splitlines()[1].startswith(f"{bad}{' ' * (len(' image 图') + 3)}"), "a sign as wide as two letters"
    rows = list(csv.DictReader(io.StringIO(sightline("predict", run, good, bad, "--format", "csv").out)))
    assert rows[0]["label"] in {"blue", "green", "red"}
    assert (rows[1]["label"], rows[1]["error"]) == ("", result.lines[1]["error"])


@pytest.mark.parametrize("aligned", [3, 1])
def test_the_columns_of_the_text_align(
    sightline: Command, run: Path, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aligned: int
) -> None:
    monkeypatch.setattr("sightline.cli.predict.MAX_ALIGNED", aligned)
    monkeypatch.chdir(tmp_path)
    for name in ("1.png", "a-much-longer-name.png", "3.png"):
        shutil.copy(next((colors / "blue").iterdir()), name)
    rows = sightline("predict", run, "1.png", "a-much-longer-name.png", "3.png").out.splitlines()
    starts = [len(row) - len(row.split(maxsplit=1)[1]) for row in rows]
    assert starts == ([24] * 3 if aligned == 3 else [14, 24, 24]), "a long list is printed without waiting for its end"


def test_a_nan_prediction_is_a_row_and_sets_the_exit_code(
    sightline: Command, run: Path, colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(self: OnnxPredictor, pixels: Any) -> Any:
        return np.full((len(pixels), len(self.classes)), np.nan, np.float32)

    path = next((colors / "blue").iterdir())
    monkeypatch.setattr(OnnxPredictor, "probabilities", bad)
    monkeypatch.setattr(bundle, "check_reference_examples", lambda *_: None)  # it would reject such a model at load
    reason = "the model's answer is not a finite number"
    result = sightline("predict", run, path, "--format", "json")
    assert (result.code, result.lines) == (1, [{"path": str(path), "error": reason}])
    for form in ("text", "csv"):
        result = sightline("predict", run, path, "--format", form)
        assert result.code == 1
        assert reason in result.out


def test_predict_writes_nothing_into_the_home_folder(run: Path, colors: Path, tmp_path: Path) -> None:
    """ONNX Runtime would otherwise write a device id and telemetry events there."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_", "SIGHTLINE_"))}
    command = [sys.executable, "-m", "sightline", "predict", str(run), str(colors / "red"), "--format", "json"]
    completed = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment | {"HOME": str(home)}
    )
    assert (completed.returncode, len(completed.stdout.splitlines())) == (0, 40), completed.stderr
    assert list(home.rglob("*")) == []


def test_globs_and_standard_input(sightline: Command, run: Path, colors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = colors / "*" / "*-00[12].png"
    result = sightline("predict", run, pattern, "--format", "json")
    paths = [line["path"] for line in result.lines]
    assert len(paths) == 6
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("\n".join(paths[::-1]).encode())))
    outcome = sightline("predict", run, "-", "--format", "json")
    assert [line["path"] for line in outcome.lines] == paths[::-1]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(Path(paths[0]).read_bytes())))
    piped = sightline("predict", run, "-", "--format", "json")
    assert (piped.lines[0]["path"], piped.lines[0]["label"]) == ("-", result.lines[0]["label"])
    assert piped.lines[0]["probability"] == pytest.approx(
        result.lines[0]["probability"], abs=1e-5
    )  # another batch size
    assert sightline("predict", run, colors / "none*.png").code == 2


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    return path


def test_a_list_in_place_of_an_image_is_refused_with_what_to_do(
    sightline: Command, run: Path, colors: Path, tmp_path: Path
) -> None:
    table = tmp_path / "new.CSV"
    table.write_text("path\na.png\n", encoding="utf-8")
    result = sightline("predict", run, table)
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        f"error: {table} is not an image: give the paths that it lists on standard input, one per line, with - in its "
        "place.\n"
    )
    assert sightline("predict", run, table, next(colors.rglob("*.png"))).code == 1  # as a shell expands photos/*


def test_csv_has_the_top_classes_and_all_probabilities(
    sightline: Command, run: Path, colors: Path, broken: Path
) -> None:
    image = next((colors / "red").iterdir())
    lines = sightline("predict", run, image, broken, "--format", "json", "--top", 9).lines
    printed = sightline("predict", run, image, broken, "--format", "csv", "--top", 2, "--probabilities")
    assert printed.code == 1
    row, bad = csv.DictReader(io.StringIO(printed.out))
    ranked = [(c["label"], f"{c['probability']:.6f}") for c in lines[0]["top"]]
    assert [(row["label"], row["probability"]), (row["label_2"], row["probability_2"])] == ranked[:2]
    assert {c["label"]: float(row[f"probability:{c['label']}"]) for c in lines[0]["top"]} == {
        c["label"]: pytest.approx(c["probability"], rel=1e-6) for c in lines[0]["top"]
    }
    assert "label_3" not in row
    assert (bad["path"], bad["error"]) == (str(broken), lines[1]["error"])
    whole = sightline("predict", run, image, "--format", "json", "--top", 1, "--probabilities").lines[0]
    assert len(whole["top"]) == 1
    assert list(whole["probabilities"]) == ["blue", "green", "red"]
    stdout = sightline("predict", run, image, "--probabilities", "--top", 1).out
    assert all(label in stdout for label in ("blue", "green", "red"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("out.csv", ()),
        ("deep/out.jsonl", ()),
        ("out.txt", ("--format", "csv")),
        (
            "out.ndjson",
            (
                "--format",
                "json",
            ),
        ),
    ],
)
def test_out_writes_what_would_be_printed(
    sightline: Command, run: Path, colors: Path, broken: Path, tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    place = tmp_path / name
    arguments = ("predict", run, colors / "red", broken, *options)
    written = sightline(*arguments, "--out", place)
    assert (written.code, written.out) == (1, ""), "one image failed"
    assert "41 images, 1 of them failed" in " ".join(written.err.split())
    form = "json" if name.endswith((".ndjson", ".jsonl")) else "csv"
    assert place.read_text(encoding="utf-8") == sightline("predict", run, colors / "red", broken, "--format", form).out
    assert sightline("predict", run, colors / "blue", *options, "--out", place).code == 0, (
        "an earlier result is replaced"
    )
    assert "blue-000" in place.read_text(encoding="utf-8")
    assert [p.name for p in place.parent.iterdir() if p.name.startswith(".part-")] == []


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("labels.csv", (), "exists and is not a result of predict"),
        ("out.xlsx", (), "should end with .csv, .jsonl or .parquet"),
        ("out.csv", ("--format", "text"), "redirect the text"),
        ("folder.csv", (), "is a folder"),
        ("labels.csv/out.csv", (), "labels.csv"),
    ],
)
def test_out_refuses_what_it_would_spoil(
    sightline: Command, run: Path, colors: Path, tmp_path: Path, name: str, options: tuple[str, ...], words: str
) -> None:
    (tmp_path / "folder.csv").mkdir()
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\nx.png,cat\n", encoding="utf-8")
    result = sightline("predict", run, colors / "red", *options, "--out", tmp_path / name)
    assert result.code == 2
    assert words in " ".join(result.err.split())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.csv", "labels.csv"]
    assert labels.read_text(encoding="utf-8") == "path,label\nx.png,cat\n"


def test_out_that_fails_on_the_way_leaves_what_was_there(
    sightline: Command, run: Path, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sightline.errors import ModelError
    from sightline.inference import stream

    place = tmp_path / "out.csv"
    assert sightline("predict", run, colors / "red", "--out", place).code == 0
    before = place.read_bytes()
    predict = stream.predict

    def fails(*arguments: Any, **options: Any) -> Any:
        yield from list(predict(*arguments, **options))[:3]
        raise ModelError("It stopped.")

    monkeypatch.setattr(stream, "predict", fails)
    assert sightline("predict", run, colors / "blue", "--out", place).code == 2
    assert place.read_bytes() == before
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("predict", "{tmp}", "x.png"), "is not a model: expected a run"),
        (("predict", "{tmp}/none", "x.png"), "There is no model"),
        (("predict", "{run}/..", "x.png"), "contains some: use"),
        (("predict", "{run}/model.keras", "x.png"), "is a file of the model"),
        (("evaluate", "{image}", "{run}"), "the model comes first, then the images"),
        (("predict", "{run}", "{tmp}"), "no images"),
        (("evaluate", "{run}", "--split", "tset"), "test"),
        (("evaluate", "{run}", "{tmp}"), "No images"),
        (("recipes", "qick"), "quick"),
    ],
)
def test_bad_use_is_explained(
    sightline: Command, run: Path, colors: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    image = next((colors / "red").iterdir())
    result = sightline(*[a.format(run=run, tmp=tmp_path, image=image) for a in arguments])
    assert (result.code, result.out) == (2, "")
    assert words in result.err


def test_evaluate_json(sightline: Command, run: Path, colors: Path) -> None:
    own = sightline("evaluate", run, "--format", "json").json
    assert {"accuracy", "accuracy_interval", "per_class", "confusion", "count", "unreadable"} <= set(own)
    low, high = own["accuracy_interval"]
    assert 0 <= low <= own["accuracy"] <= high <= 1
    assert sum(map(sum, own["confusion"])) == own["count"] == sum(c["support"] for c in own["per_class"])
    every = sightline("evaluate", run, colors, "--include-training", "--format", "json").json
    assert every["count"] == 120
    splits = [
        sightline("evaluate", run, "--split", split, "--format", "json").json["count"]
        for split in ("train", "validation")
    ]
    assert sum(splits) + own["count"] == 120
    result = sightline("evaluate", run)
    assert "95% interval" in result.out
    assert "precision" in result.out


def test_an_unknown_class_is_named(sightline: Command, run: Path, tmp_path: Path) -> None:
    for label in ("red", "violet"):
        (tmp_path / label).mkdir()
        Image.new("RGB", (40, 40), label).save(tmp_path / label / "1.png")
    result = sightline("evaluate", run, tmp_path)
    assert result.code == 2
    assert "'violet'" in result.err


def test_rejects_are_counted_not_fatal(sightline: Command, run: Path, colors: Path, tmp_path: Path) -> None:
    shutil.copytree(colors, tmp_path / "data")
    (tmp_path / "data" / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    payload = sightline("evaluate", run, tmp_path / "data", "--include-training", "--format", "json").json
    assert payload["count"] == 120
    assert [r["path"] for r in payload["unreadable"]] == ["red/broken.png"]


def test_lists(sightline: Command) -> None:
    models = {m["name"] for m in sightline("models", "--format", "json").json["models"]}
    assert {"cifar10-simple", "cifar10-deep", "fashion-cnn", "vgg16", "mobilenetv2"} <= models
    recipes = {r["name"] for r in sightline("recipes", "--format", "json").json["recipes"]}
    assert {"auto", "quick", "transfer"} <= recipes
    assert "[model]" in sightline("recipes", "quick").out
    env = sightline("env", "--format", "json").json
    assert env["backend"] in env["installed_backends"]
    assert env["backend_reason"]
    assert ("backend_use" in env) == (env["backend"] == "torch")
    assert "CPUExecutionProvider" in env["onnxruntime_providers"]
    assert {"python", "keras", "sightline"} <= set(env["versions"])


def test_no_backend_starts_to_list_the_one_cpu_of_a_machine(
    sightline: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.keras()
    expected = sightline("env", "--format", "json").json
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setattr(environment, "start_backend", lambda _: pytest.fail("a backend starts"))
    monkeypatch.setattr(accelerators, "may_have_accelerator", lambda: False)
    quick = sightline("env", "--format", "json").json
    assert (quick["devices"], quick["threads"]) == (["cpu:0"], quick["cores"])
    assert set(quick) == set(expected)
    header, *rows = sightline("env").out.splitlines()
    assert header.split() == ["property", "value"]
    assert all(row.strip() for row in rows)


def test_only_existing_commands_are_listed(sightline: Command) -> None:
    stdout = sightline("--help").out
    for verb in ("train", "evaluate", "predict", "models", "recipes", "env", "demo", "doctor", "explain", "serve"):
        assert verb in stdout
    assert "notebook" not in stdout


def test_a_closed_pipe_is_not_an_error(run: Path, colors: Path) -> None:
    command = f"'{sys.executable}' -m sightline predict '{run}' '{colors}' --format json | head -n 1"
    completed = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert completed.stdout.count("\n") == 1
    assert "Traceback" not in completed.stderr


def test_every_odd_file_is_a_row(sightline: Command, run: Path, shared: Path) -> None:
    odd = shared / "data" / "odd_images"
    files = [p for p in odd.rglob("*") if p.is_file() and p.suffix not in {".csv", ".txt"}]
    result = sightline("predict", run, *files, "--format", "json")
    assert result.code == 1
    assert [line["path"] for line in result.lines] == list(map(str, files))
    errors = [line["error"] for line in result.lines if "error" in line]
    assert 0 < len(errors) < len(files) / 4
    assert all(errors)


def test_the_largest_file_is_a_setting(sightline: Command, run: Path, tmp_path: Path) -> None:
    """For a file, a folder, a list on standard input, in explain, and from Python."""
    image = tmp_path / "images" / "large.bmp"
    image.parent.mkdir()
    Image.new("RGB", (32, 32)).save(image)  # 3 kB
    small = ("--set", "data.limits.file_mb=0.001")
    for verb, where in (("predict", image), ("predict", image.parent), ("explain", image)):
        options = ("--out", tmp_path / "why") if verb == "explain" else ()
        result = sightline(verb, run, where, "--format", "json", *options, *small)
        assert (result.code, result.lines[0]["error"]) == (1, "too large: 0 MiB, limit 0.001 (data.limits.file_mb)"), (
            verb
        )
        assert sightline(verb, run, where, "--format", "json", *options, "--set", "data.limits.file_mb=1").code == 0
    classifier = load(run)
    assert "too large" in str(classifier.predict(image, set=[small[1]])[0].error)
    assert "too large" in str(classifier.explain(image, method="occlusion", set=[small[1]])[0].error)
    for wrong in ("data.class_level=2", "data.limits.file_mb", "data.limits.file_mb=much", "data.limits.file_mb=-1"):
        result = sightline("predict", run, image, "--set", wrong)
        assert (result.code, "data.limits.file_mb" in result.err) == (2, True), wrong


def test_names_that_come_twice_in_an_archive_are_one_message(sightline: Command, run: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.filterwarnings("ignore", "Duplicate name")
        for color in ("red", "green", "blue"):
            content = io.BytesIO()
            Image.new("RGB", (32, 32), color).save(content, "PNG")
            archive.writestr("1.png", content.getvalue())
    message = f"{path}: 1 name occurs more than once, e.g. 1.png; every such file is read, the second as `name (2)`."
    commands = [
        ("predict", run, path), ("predict", run, path, "--format", "json"),
        ("predict", run, path, "--out", tmp_path / "p.csv"), ("predict", run, path, "--out", tmp_path / "p.parquet"),
        ("explain", run, path, "--method", "occlusion", "--out", tmp_path / "why"),
        ("embed", run, path, "--out", tmp_path / "e.csv"),
    ]  # fmt: skip
    for arguments in commands:
        result = sightline(*arguments)
        assert result.code == 0, (arguments, result.err)
        assert " ".join(result.err.split()).count(message) == 1, (arguments, result.err)
        assert "more than once" not in result.out
    recorder = RecordingCallback()
    classifier = load(run)
    assert len(classifier.predict(path, callback=recorder)) == 3
    assert recorder.lines == [message]


def test_the_limits_of_archives_are_settings(sightline: Command, run: Path, tmp_path: Path) -> None:
    """The error names the setting to raise, and the same command takes it; so does Python."""
    content = io.BytesIO()
    Image.new("RGB", (32, 32)).save(content, "PNG")
    path = write_zip(tmp_path / "a.zip", {f"{number}.png": content.getvalue() for number in range(3)})
    few = "data.limits.archive_members=2"
    verbs = {
        "predict": (), "explain": ("--method", "occlusion", "--out", tmp_path / "why"),
        "embed": ("--out", tmp_path / "e.csv"),
    }  # fmt: skip
    for verb, options in verbs.items():
        result = sightline(verb, run, path, *options, "--set", few)
        assert (result.code, "more than 2 members" in result.err) == (2, True), (verb, result.err)
        assert "data.limits.archive_members" in result.err, verb
        enough = sightline(verb, run, path, *options, "--set", "data.limits.archive_members=3")
        assert enough.code == 0, (verb, enough.err)
    classifier = load(run)
    assert len(classifier.predict(path, set={"data.limits.archive_members": 3})) == 3
    with pytest.raises(DataError, match=r"data\.limits\.archive_members"):
        classifier.predict(path, set={"data.limits.archive_members": 2})


@pytest.mark.skipif(os.name == "nt", reason="there are no named pipes in folders")
def test_a_pipe_in_place_of_a_result_is_refused_at_once(sightline: Command, run: Path, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (32, 32), "red").save(image)
    result = sightline("explain", run, image, "--method", "occlusion", "--out", tmp_path / "why", "--format", "json")
    figure = Path(result.lines[0]["figure"])
    figure.unlink()
    for pipe, arguments in (
        (tmp_path / "out.csv", ("predict", run, image, "--out", tmp_path / "out.csv")),
        (figure, ("explain", run, image, "--method", "occlusion", "--out", tmp_path / "why")),
    ):
        os.mkfifo(pipe)
        result = sightline(*arguments)
        assert (result.code, str(pipe) in "".join(result.err.split())) == (2, True), result.err
