"""`sightline report`: the same page from the run's files alone, and what it says of lost or damaged files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from command import COLORS, Command, draw_classes
from damage import enlarge_matrix, repeat_lines
from sightline import _io
from sightline.inference.results import Thresholds
from sightline.report import html_report
from sightline.runs import report_images
from sightline.runs.directory import RunDirectory
from sightline.runs.run_report import read_report

FRAMEWORKS = {"jax", "keras", "matplotlib", "onnxruntime", "tensorflow", "torch"}
PROBE = """
import sys
from sightline.cli import main
sys.argv = ["sightline", "report", sys.argv[1]]
try:
    main()
except SystemExit as stop:
    if stop.code:
        raise
print("modules:", *{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def trained_apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose recipe `auto` chose, with errors (red is labeled blue in test) and leaks; its images have moved."""
    import sightline

    folder = tmp_path_factory.mktemp("apart")
    drawings, source = draw_classes(folder / "drawings", COLORS, 40), folder / "source"
    for label in COLORS:
        for number, image in enumerate(sorted((drawings / label).iterdir())):
            split, label_in_folder = ("train", label) if number < 30 else ("test", "blue" if label == "red" else label)
            (source / split / label_in_folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(image, source / split / label_in_folder)
    for image in sorted((drawings / "green").iterdir())[:3]:  # in both splits
        shutil.copy(image, source / "test" / "green" / f"again-{image.name}")
    run = sightline.train(
        source, epochs=1, set={"model.name": "cifar10-simple", "model.hidden_units": [64], "split.validation": 0.2},
        out=folder / "run", allow=["split-leakage"], progress=False,
    )  # fmt: skip
    source.rename(folder / "moved")
    return run.path


@pytest.fixture
def run(trained_apart: Path, tmp_path: Path) -> RunDirectory:
    return RunDirectory(Path(shutil.copytree(trained_apart, tmp_path / "run")))


def read_page(run: RunDirectory) -> str:
    return " ".join(unescape((run.path / "report.html").read_text("utf-8")).split())


def test_the_same_page_from_the_files_alone_without_a_framework(
    trained_apart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the model, its bundle, the images nor the cache of pixels is there."""
    before = (trained_apart / "report.html").read_bytes()
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    names = ("model.keras", "bundle", "checkpoints", "report.html")
    for name in names:
        (trained_apart / name).rename(hidden / name)
    try:
        environment = os.environ | {"SIGHTLINE_CACHE": str(tmp_path / "no-cache")}
        completed = subprocess.run(
            [sys.executable, "-c", PROBE, str(trained_apart)], capture_output=True, text=True, check=False,
            timeout=300, env=environment,
        )  # fmt: skip
        assert completed.returncode == 0, completed.stderr
        assert completed.stdout.strip() == str(trained_apart / "report.html")
        assert (trained_apart / "report.html").read_bytes() == before
        modules = set(completed.stderr.rpartition("modules:")[2].split())
        assert "sightline" in modules
        assert not modules & FRAMEWORKS
        assert not (tmp_path / "no-cache").exists()
    finally:
        for name in names[:3]:
            (hidden / name).rename(trained_apart / name)


def test_a_run_holds_all_that_its_report_shows(run: RunDirectory) -> None:
    report = read_report(run)
    assert report.unread == ()
    assert report.metrics is not None
    errors = report.metrics["errors"]
    assert errors["count"] >= 8
    paths_of_errors = [error["path"] for error in errors["most_confident_errors"]]
    paths = {kind: [i.path for i in report.images if i.kind == kind] for kind in ("error", "heat_map", "leak")}
    assert paths["error"] == paths_of_errors
    assert paths["heat_map"] == paths_of_errors
    leaked = {row.path for leak in report.leaks for row in leak.images}
    assert leaked
    assert set(paths["leak"]) <= leaked
    page = (run.path / "report.html").read_text("utf-8")
    num_errors = min(len(paths_of_errors), html_report.MAX_ERRORS)
    assert page.count('src="data:image/') == 2 * num_errors + len(paths["leak"]), "each error with its heat map"
    assert report.network is not None
    assert report.network.parameters == report.result["parameters"]
    assert report.preprocess is not None
    assert [row.epoch for row in report.history] == [1]
    sizes = [path.stat().st_size for path in (run.path / "report").iterdir()]
    assert max(sizes) < report_images.MAX_BYTES


def test_a_run_says_which_recipe_auto_chose_and_why(run: RunDirectory) -> None:
    import sightline

    choice = sightline.Run(run.path).recipe_choice
    assert choice is not None
    assert choice.recipe == "quick"
    assert choice.reason == "123 images of about 32 pixels in 3 classes, by the settings: a network from scratch"
    assert choice.reason in read_page(run)
    run.update(recipe_choice=None)
    assert sightline.Run(run.path).recipe_choice is None


LOST = (
    "eval/test/metrics.json", "history.jsonl", "leakage.jsonl", "network.json", "model.json", "report/images.jsonl",
)  # fmt: skip


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("damage", ["missing", "damaged", "a link", "other values"])
def test_the_page_lacks_what_is_lost_and_says_so(
    sightline: Command, run: RunDirectory, tmp_path: Path, name: str, damage: str
) -> None:
    path = run.path / name
    if damage == "a link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif damage == "missing":
        path.unlink()
    else:
        path.write_text('{"layers": 3, "kind": 4}\n' if damage == "other values" else "\ud83d{"[1:], encoding="utf-8")
    result = sightline("report", run.path)
    assert result.code == 0, result.err
    assert [file.name for file in read_report(run).unread] == [name]
    assert name in read_page(run)


@pytest.mark.parametrize("damage", ["missing", "other content", "a link", "a folder"])
def test_a_lost_thumbnail_is_named_and_the_others_stay(
    sightline: Command, run: RunDirectory, tmp_path: Path, damage: str
) -> None:
    images = report_images.read_images(run)
    lost = next(image for image in images if image.kind == "error")
    path = run.path / "report" / lost.file
    path.rename(tmp_path / "elsewhere")
    if damage == "other content":
        path.write_bytes(b"secret")
    elif damage == "a link":
        path.symlink_to(tmp_path / "elsewhere")
    elif damage == "a folder":
        path.mkdir()
    assert sightline("report", run.path).code == 0
    assert {file.name for file in read_report(run).unread} == {f"report/{lost.file}"}
    assert lost.file in read_page(run)
    remaining = {image: content for image, content in report_images.read_images(run).items() if content}
    assert remaining == {image: content for image, content in images.items() if image.file != lost.file}


def test_a_heat_map_that_is_not_an_image_is_left_out(sightline: Command, run: RunDirectory) -> None:
    rows = [json.loads(line) for line in (run.path / "report" / "images.jsonl").read_text("utf-8").splitlines()]
    row = next(row for row in rows if row["kind"] == "heat_map")
    content = b"\x89PNG no image"
    row["file"] = report_images.name_file(content, "png")
    (run.path / "report" / row["file"]).write_bytes(content)
    (run.path / "report" / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert sightline("report", run.path).code == 0


def test_an_index_of_more_images_than_a_report_has_is_refused(
    sightline: Command, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run.path / "report" / report_images.INDEX
    row = json.loads(path.read_text("utf-8").splitlines()[0])
    rows = [row | {"path": f"{number}.png"} for number in range(report_images.MAX_IMAGES)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    read: list[Path] = []
    read_regular = _io.read_regular

    def record(path: Path, max_bytes: int) -> bytes:
        read.append(path)
        return read_regular(path, max_bytes)

    monkeypatch.setattr(_io, "read_regular", record)
    images = report_images.read_images(run)
    assert len(images) == report_images.MAX_IMAGES
    assert read == [run.path / "report" / row["file"]], "once, whatever the number of lines that name it"
    repeat_lines(path, 5000).apply(path)
    assert sightline("report", run.path).code == 0
    assert [file.reason.partition(": ")[2] for file in read_report(run).unread] == ["it has more than 200 lines."]


@pytest.mark.parametrize("name", ["history.jsonl", "leakage.jsonl"])
def test_many_lines_have_a_page(sightline: Command, run: RunDirectory, name: str) -> None:
    repeat_lines(run.path / name, 3000).apply(run.path / name)
    result = sightline("report", run.path)
    assert result.code == 0, result.err


def test_a_large_matrix_has_a_small_page(sightline: Command, run: RunDirectory) -> None:
    path = run.path / "eval" / "test" / "metrics.json"
    enlarge_matrix(path, 300).apply(path)
    result = sightline("report", run.path)
    assert result.code == 0, result.err
    assert read_report(run).unread == ()
    assert (run.path / "report.html").stat().st_size < 2 << 20


def test_a_name_that_leads_elsewhere_is_refused(sightline: Command, run: RunDirectory) -> None:
    row = {"kind": "error", "path": "x.png", "file": "../../secret.png", "predicted": ""}
    (run.path / "report" / "images.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    assert sightline("report", run.path).code == 0
    (unread,) = read_report(run).unread
    assert "'../../secret.png' is not the name of a thumbnail" in unread.reason


def test_a_run_without_its_result_or_settings_has_no_report(sightline: Command, run: RunDirectory) -> None:
    config = (run.path / "config.toml").read_text("utf-8")
    (run.path / "config.toml").write_text("nonsense", "utf-8")
    result = sightline("report", run.path)
    assert result.code == 2
    assert "config.toml" in result.err
    (run.path / "config.toml").write_text(config, "utf-8")
    run.update(drop=("result",))
    result = sightline("report", run.path)
    assert result.code == 2
    assert "run.json" in result.err


@pytest.mark.slow
def test_an_evaluation_keeps_the_report_up_to_date(sightline: Command, run: RunDirectory, trained_apart: Path) -> None:
    source = trained_apart.parent / "source"
    (trained_apart.parent / "moved").rename(source)
    try:
        before = report_images.read_images(run)
        assert sightline("report", run.path).code == 0
        page = (run.path / "report.html").read_bytes()
        for options in ((), ("--split", "validation")):
            (run.path / "report.html").unlink()
            assert sightline("evaluate", run.path, *options).code == 0
            assert report_images.read_images(run) == before
            assert (run.path / "report.html").read_bytes() == page
        assert sightline("evaluate", run.path, "--target-precision", "0.5", "--no-conservative").code in {0, 1}
        assert "No threshold is set" in page.decode()
        assert "No threshold is set" not in read_page(run)
    finally:
        source.rename(trained_apart.parent / "moved")


@pytest.mark.slow
def test_an_evaluation_adds_label_issues_to_the_report(
    sightline: Command, run: RunDirectory, trained_apart: Path
) -> None:
    pytest.importorskip("cleanlab")
    source = trained_apart.parent / "source"
    (trained_apart.parent / "moved").rename(source)
    try:
        assert sightline("evaluate", run.path, "--find-label-issues", run.path.parent / "patch.jsonl").code == 0
        worst = [issue.path for issue in (run.read_label_issues() or ())[: report_images.MAX_LABEL_ISSUES]]
        assert worst
        images = report_images.read_images(run)
        assert {image.path for image in images if image.kind == "label_issue"} == set(worst)
        assert worst[0] in read_page(run)
    finally:
        source.rename(trained_apart.parent / "moved")


def test_the_page_tells_thresholds_of_another_evaluation_apart(sightline: Command, run: RunDirectory) -> None:
    run.write_thresholds(Thresholds(9, target_precision=0.9, confidence=0.5))
    assert sightline("report", run.path).code == 0
    assert "The thresholds have changed since these metrics were computed" in read_page(run)
    assert "No threshold is set" not in read_page(run)


def test_a_folder_that_is_a_link_is_not_followed(sightline: Command, run: RunDirectory, tmp_path: Path) -> None:
    for name in ("eval", "report"):
        (run.path / name).rename(tmp_path / name)
        (run.path / name).symlink_to(tmp_path / name)
    assert sightline("report", run.path).code == 0
    unread = read_report(run).unread
    assert [(file.name, file.reason) for file in unread] == [
        ("eval/test/metrics.json", "links are not followed"),
        ("report/images.jsonl", "links are not followed"),
    ]
    assert "The metrics of this run are missing" in read_page(run)
