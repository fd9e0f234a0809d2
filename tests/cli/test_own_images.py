"""Which images a run is evaluated on: all of its own, from any folder, and no training images among others."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sightline as face
from command import Command
from sightline.callbacks import Callback, EpochRecord, Progress
from sightline.data.recorded_images import MatchedImages
from sightline.data.types import Index
from sightline.errors import DataError, Interrupted, MissingImagesError
from sightline.runs import run_images
from sightline.runs.directory import RunDirectory
from synthetic_images import draw_scene, encode

pytestmark = pytest.mark.usefixtures("plain_figures")

TINT = {"blue": (0.5, 0.6, 1.0), "red": (1.0, 0.6, 0.5)}
SETTINGS = [
    'data.allow_findings=["split-leakage"]',
    "model.name=cifar10-simple",
    "model.hidden_units=[64]",
    "train.epochs=1",
    "input.height=32",
    "split.validation=0.25",
]


def draw(number: int, label: str) -> Image.Image:
    """Return a unique scene in the tint of its class."""
    pixels = np.asarray(draw_scene(number, 80, 70)) * np.array(TINT[label])
    return Image.fromarray(pixels.astype(np.uint8))


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data`` and ``run``, which was trained on the relative path ``data``.

    Each class has 24 images in train/, some of which become the validation split, and 6 in test/. In addition, test/
    has "copy.png", identical to a training image, and "smaller.jpg", a smaller copy of one.
    """
    folder = tmp_path_factory.mktemp("project")
    for c, label in enumerate(TINT):
        for i in range(24):
            write(folder / "data" / "train" / label / f"{i:02}.png", encode(draw(100 * c + i, label)))
        for i in range(24, 30):
            write(folder / "data" / "test" / label / f"{i}.png", encode(draw(100 * c + i, label)))
        test = folder / "data" / "test" / label
        shutil.copy(folder / "data" / "train" / label / "03.png", test / "copy.png")
        write(test / "smaller.jpg", encode(draw(100 * c + 5, label).resize((60, 52)), "JPEG", quality=85))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        face.train("data", recipe="quick", set=SETTINGS, out="run")
    return folder


@pytest.fixture
def project_copy(project: Path, tmp_path: Path) -> Path:
    """A copy of the project that a test may change."""
    folder = Path(shutil.copytree(project, tmp_path / "project"))
    run = RunDirectory(folder / "run")
    run.update(request=run.info["request"] | {"folder": str(folder)})
    return folder


@pytest.fixture
def everything(project: Path, tmp_path: Path) -> Path:
    """All images of the project in class folders, without splits."""
    for path in sorted((project / "data").rglob("*.*")):
        label, name = path.parent.name, f"{path.parents[1].name}-{path.name}"
        write(tmp_path / "all" / label / name, path.read_bytes())
    return tmp_path / "all"


def read_files(run: Path) -> dict[str, bytes]:
    """Return all files of a run."""
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file() and p.name != "lock"}


# Its own images


def test_every_command_gives_one_accuracy_for_a_file_in_two_splits(sightline: Command, project_copy: Path) -> None:
    run = project_copy / "run"
    trained = json.loads((run / "run.json").read_text())["result"]["test"]
    assert trained["count"] == 16
    metrics = run / "eval" / "test" / "metrics.json"
    first = json.loads(metrics.read_text())
    evaluated = sightline("evaluate", run, "--format", "json").json
    assert sightline("report", run).code == 0
    reported = json.loads(metrics.read_text())
    shutil.copytree(run, project_copy / "twin")
    compared = sightline("compare", run, project_copy / "twin", "--format", "json").json
    python = face.load(run).evaluate()
    for payload in (first, evaluated, reported, compared["runs"][0]):
        assert payload["accuracy"] == trained["accuracy"] == python.accuracy
    assert first["count"] == evaluated["count"] == reported["count"] == python.result.count == 16
    assert compared["comparisons"][0]["count"] == 16
    assert compared["runs"][0]["leaked"] == 4
    assert "test (4 leaked)" in sightline("compare", run, project_copy / "twin").out


def test_leaked_test_images_are_reported_with_the_accuracy(sightline: Command, project: Path) -> None:
    run = project / "run"
    payload = sightline("evaluate", run, "--format", "json").json
    leaked = payload["leaked"]
    names = {f"test/{label}/{name}" for label in TINT for name in ("copy.png", "smaller.jpg")}
    assert (leaked["count"], leaked["identical"], leaked["near_duplicates"], set(leaked["images"])) == (4, 2, 2, names)
    with np.load(run / "eval" / "test" / "predictions.npz") as saved:
        others = [i for i, path in enumerate(saved["paths"]) if path not in names]
        right = (saved["probabilities"].argmax(1) == saved["labels"])[others]
    assert leaked["without_leaked"]["count"] == len(right) == 12
    assert leaked["without_leaked"]["accuracy"] == pytest.approx(right.mean())
    assert "macro_f1" in leaked["without_leaked"]["metrics"]
    trained = json.loads((run / "run.json").read_text())["result"]
    brief = trained["leaked"]["test"]
    assert brief["without_leaked"]["accuracy"] == leaked["without_leaked"]["accuracy"]
    assert {key: brief[key] for key in ("count", "identical", "near_duplicates")} == {
        "count": 4,
        "identical": 2,
        "near_duplicates": 2,
    }
    card = sightline("model-card", run).out
    assert "4 of the test images are in an earlier split too (2 identical, 2 near duplicates): accuracy" in card
    stdout = sightline("evaluate", run).out
    assert "4 of these images are in an earlier split too (2 identical, 2 near duplicates): accuracy" in stdout
    page = (run / "report.html").read_text("utf-8")
    assert "4 of these images are in an earlier split too (2 identical, 2 near duplicates): accuracy" in page
    assert "on 16 test images, not all of them unseen" in page
    assert "Data leakage" in page
    for name in (*names, "train/red/03.png", "train/blue/05.png"):
        assert name in page


def test_training_says_what_the_test_is_without_them(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sightline.cli.train import print_result
    from sightline.runs.existing_run import load_result

    run = RunDirectory(project / "run")
    print_result(load_result(run))
    line = "4 of these images are in an earlier split too (2 identical, 2 near duplicates): accuracy"
    assert line in capsys.readouterr().out


def test_near_duplicates_are_kept_with_the_run_and_not_found_again(
    sightline: Command, project_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.loads(line) for line in (project_copy / "run" / "leakage.jsonl").read_text().splitlines()]
    groups = {(row["kind"], *sorted(image["path"] for image in row["images"])) for row in rows}
    near = {("near_duplicates", f"test/{label}/smaller.jpg", f"train/{label}/05.png") for label in TINT}
    assert groups == near | {("identical", f"test/{label}/copy.png", f"train/{label}/03.png") for label in TINT}
    assert {image["split"] for row in rows for image in row["images"]} >= {"train", "test"}
    monkeypatch.setattr("sightline.data.checks.leakage.find_leaks", None)
    monkeypatch.setattr("sightline.data.checks.image_stats.group_by_name", None)
    assert sightline("report", project_copy / "run").code == 0
    assert "smaller.jpg" in (project_copy / "run" / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_every_command_finds_the_images_from_another_folder(
    sightline: Command, project_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    monkeypatch.chdir(project_copy.parent)
    run = Path("project", "run")
    image = Path("project", "data", "test", "red", "24.png")
    for arguments in (
        ("evaluate", run), ("evaluate", run, "--split", "train"), ("report", run), ("resume", run), ("model-card", run),
        ("compare", run, project_copy / "run" / ".." / ".." / "twin"),
        ("explain", run, image, "--method", "occlusion", "--out", "out"), ("export", run),
    ):  # fmt: skip
        if arguments[0] == "compare":
            shutil.copytree(run, "twin")
        result = sightline(*arguments)
        assert result.code == 0, (arguments, result.err)


class Impatient(Callback):
    def on_epoch_end(self, record: EpochRecord) -> None:
        raise Interrupted("Enough.")


def test_a_run_begun_in_another_folder_is_resumed(
    sightline: Command, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(project / "data", tmp_path / "data")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fix.jsonl").write_text("")
    with pytest.raises(Interrupted):
        face.train(
            "data", recipe="quick", set=[*SETTINGS, "train.epochs=2", "data.patch=fix.jsonl"], out="run",
            callback=Impatient(),
        )  # fmt: skip
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = sightline("resume", tmp_path / "run", "--format", "json")
    assert result.code == 0, result.err
    assert (result.json["epochs"], result.json["test"]["count"]) == (2, 16)


# Images that are gone


@pytest.fixture
def damaged_project(project_copy: Path) -> Path:
    """A project in which 4 of the 16 test images were deleted, and 2 re-encoded."""
    test = project_copy / "data" / "test"
    for name in ("24.png", "25.png"):
        for label in TINT:
            (test / label / name).unlink()
            with Image.open(test / label / "26.png") as image:
                image.load()
            image.save(test / label / "26.png", compress_level=1)
    return project_copy


def test_missing_test_images_are_refused_and_nothing_is_overwritten(sightline: Command, damaged_project: Path) -> None:
    run = damaged_project / "run"
    before = read_files(run)
    for arguments in (
        ("evaluate", run),
        ("evaluate", run, "--find-label-issues", damaged_project / "patch.jsonl"),
    ):
        result = sightline(*arguments, *(["--format", "json"] if arguments[0] == "evaluate" else []))
        assert (result.code, result.out) == (2, "")
        assert (
            f"Of the 16 test images of the run {run}, 4 are missing and 2 changed since training, such as "
            "test/blue/24.png, test/blue/25.png, test/red/24.png: restore them"
        ) in result.err
        assert "--allow-missing" in result.err
        assert read_files(run) == before
    with pytest.raises(MissingImagesError, match="4 are missing and 2 changed"):
        face.load(run).evaluate()


def test_remaining_images_are_evaluated_on_request(sightline: Command, damaged_project: Path) -> None:
    run = damaged_project / "run"
    before = read_files(run)
    payload = sightline("evaluate", run, "--allow-missing", "--format", "json").json
    assert payload["count"] == 10
    assert (payload["missing"]["count"], payload["missing"]["changed"], payload["missing"]["total"]) == (6, 2, 16)
    assert payload["leaked"]["count"] == 4
    assert read_files(run) == before
    stdout = sightline("evaluate", run, "--allow-missing").out
    assert "6 of the 16 images of this split are not evaluated: 4 missing, 2 changed." in stdout
    assert face.load(run).evaluate(allow_missing=True).result.missing is not None


def test_none_left_is_an_error_all_the_same(sightline: Command, project_copy: Path) -> None:
    for path in (project_copy / "data" / "test").rglob("*.*"):
        path.unlink()
    for more in ((), ("--allow-missing",)):
        result = sightline("evaluate", project_copy / "run", *more)
        assert result.code == 2
        assert "16 are missing, such as test/" in result.err
    (project_copy / "data").rename(project_copy / "moved")
    result = sightline("evaluate", project_copy / "run")
    assert result.code == 2
    assert (
        f"The images of the run {project_copy / 'run'} are no longer at {project_copy / 'data'}: restore them"
        in result.err
    )


@pytest.mark.parametrize(
    "arguments",
    [(), ("--split", "validation"), ("--coverage", "0.8"), ("--target-precision", "0.5")],
    ids=["calibration", "split", "coverage", "precision"],
)
def test_missing_validation_images_are_refused_wherever_they_count(
    sightline: Command, project_copy: Path, arguments: tuple[str, ...]
) -> None:
    run = project_copy / "run"
    rows = [row for row in RunDirectory(run).read_data() or () if row.split == "validation"]
    (project_copy / "data" / rows[0].path).unlink()
    before = read_files(run)
    result = sightline("evaluate", run, *arguments)
    assert (result.code, result.out) == (2, "")
    assert f"Of the {len(rows)} validation images of the run {run}, 1 is missing, such as {rows[0].path}" in result.err
    assert read_files(run) == before
    outcome = sightline("evaluate", run, *arguments, "--allow-missing", "--format", "json")
    assert outcome.json["count"] == (len(rows) - 1 if "validation" in arguments else 16)


@pytest.mark.parametrize(
    ("split", "precision", "advice"),
    [
        ("validation", "float32", "or give labeled images for the comparison with --parity."),
        ("train", "int8", "or choose another precision: int8 is calibrated on training images."),
    ],
)
def test_an_export_without_its_images_says_what_an_export_can_do(
    sightline: Command, project_copy: Path, split: str, precision: str, advice: str
) -> None:
    row = next(row for row in RunDirectory(project_copy / "run").read_data() or () if row.split == split)
    (project_copy / "data" / row.path).unlink()
    result = sightline("export", project_copy / "run", "--precision", precision)
    assert result.code == 2
    assert result.err.rstrip().endswith(f"such as {row.path}: restore them, {advice}")


def test_missing_training_images_stop_only_what_reads_them(
    sightline: Command, project_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = next(row for row in RunDirectory(project_copy / "run").read_data() or () if row.split == "train")
    (project_copy / "data" / row.path).unlink()
    assert sightline("evaluate", project_copy / "run").code == 0
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    for arguments in (
        ("evaluate", project_copy / "run", "--find-label-issues", project_copy / "p.jsonl"),
        ("compress", project_copy / "run"),
    ):
        result = sightline(*arguments)
        if ".[labels]" in result.err:  # reported before the images are read
            continue
        assert result.code == 2
        assert f"1 is missing, such as {row.path}" in result.err


def test_images_added_later_are_in_no_split_and_reported(sightline: Command, project_copy: Path) -> None:
    write(project_copy / "data" / "test" / "red" / "new.png", encode(draw(77, "red")))
    payload = sightline("evaluate", project_copy / "run", "--format", "json").json
    assert (payload["count"], payload["added"]) == (16, 1)
    line = "1 image was added since training and is in no split: pass its folder to evaluate on it."
    assert line in sightline("evaluate", project_copy / "run").out


# Images from elsewhere


def test_training_images_among_others_are_left_out_and_counted(
    sightline: Command, project: Path, everything: Path
) -> None:
    run = project / "run"
    before = read_files(run)
    payload = sightline("evaluate", run, everything, "--format", "json").json
    assert payload["count"] == 12, "the test images except the four that leaked"
    training_images = payload["training_images"]
    assert (training_images["included"], training_images["identical"], training_images["near_duplicates"]) == (
        False,
        50,
        2,
    )
    own = sightline("evaluate", run, "--format", "json").json["leaked"]["without_leaked"]
    assert (payload["accuracy"], payload["count"]) == (own["accuracy"], own["count"])
    stdout = sightline("evaluate", run, everything).out
    assert (
        "52 images that the model was trained or validated on were excluded (50 identical, 2 near duplicates); "
        "--include-training includes them"
    ) in stdout
    assert set(read_files(run)) == set(before)


def test_they_are_included_on_request(sightline: Command, project: Path, everything: Path) -> None:
    payload = sightline("evaluate", project / "run", everything, "--include-training", "--format", "json").json
    assert payload["count"] == 64
    training_images = payload["training_images"]
    assert (
        training_images["included"],
        training_images["identical"],
        training_images["near_duplicates"],
        len(training_images["images"]),
    ) == (True, 50, 2, 52)
    stdout = sightline("evaluate", project / "run", everything, "--include-training").out
    assert "TRAINING IMAGES INCLUDED: 52 images that the model was trained or validated on" in stdout
    python = face.load(project / "run").evaluate(str(everything), include_training=True).result
    assert python.count == 64
    assert python.overlap is not None
    assert python.overlap.count == 52


def test_nothing_but_training_images_is_refused(sightline: Command, project: Path, tmp_path: Path) -> None:
    shutil.copytree(project / "data" / "train", tmp_path / "only")
    result = sightline("evaluate", project / "run", tmp_path / "only", "--format", "json")
    assert (result.code, result.out) == (2, "")
    assert "was trained or validated on all 48 images of" in result.err
    assert "--include-training" in result.err
    assert "Traceback" not in result.err
    with pytest.raises(DataError, match="all 48 images"):
        face.load(project / "run").evaluate(str(tmp_path / "only"))


def test_new_images_are_evaluated_without_a_remark(sightline: Command, project: Path, tmp_path: Path) -> None:
    for c, label in enumerate(TINT):
        for i in range(50, 54):
            write(tmp_path / "new" / label / f"{i}.png", encode(draw(100 * c + i, label)))
    payload = sightline("evaluate", project / "run", tmp_path / "new", "--format", "json").json
    assert (payload["count"], payload["leaked"], payload["missing"]) == (8, None, None)
    assert payload["training_images"] == {"included": False, "identical": 0, "near_duplicates": 0, "images": []}
    assert "training" not in sightline("evaluate", project / "run", tmp_path / "new").out.split("figure")[0].lower()


@pytest.mark.parametrize("command", [("evaluate", "run"), ("export", "run", "--precision", "int8", "--tolerance", "1")])
def test_a_command_indexes_the_images_once_for_all_splits(
    sightline: Command, project: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    looks: list[RunDirectory] = []
    look = run_images.match_run_images

    def counted(run: RunDirectory, progress: Progress, index: Index | None = None) -> MatchedImages:
        looks.append(run)
        return look(run, progress, index)

    monkeypatch.chdir(project)
    monkeypatch.setattr(run_images, "match_run_images", counted)
    result = sightline(*command)
    if ".[int8]" in result.err:
        pytest.skip("onnx is not installed")
    assert result.code == 0, result.err
    assert len(looks) == 1


def test_the_own_images_of_a_run_are_not_out_of_distribution(sightline: Command, project: Path, tmp_path: Path) -> None:
    shutil.copytree(project / "data" / "test" / "red", tmp_path / "strange" / "a")
    result = sightline("evaluate", project / "run", "--ood", tmp_path / "strange")
    if ".[labels]" in result.err:
        pytest.skip("scikit-learn is not installed")
    assert result.code == 2
    assert "All 8 images of strange belong to the run: give others with --ood." in result.err
    write(tmp_path / "strange" / "b" / "noise.png", encode(draw_scene(999)))
    result = sightline("evaluate", project / "run", "--ood", tmp_path / "strange")
    assert result.code == 0, result.err
    assert "1 image of strange" in result.out
    assert "8 images that belong to the run were excluded." in result.out


def test_a_bundle_finds_training_images_by_its_location(
    sightline: Command, project: Path, everything: Path, tmp_path: Path
) -> None:
    inside = sightline("evaluate", project / "run" / "bundle", everything, "--format", "json").json
    assert (inside["count"], inside["training_images"]["identical"]) == (12, 50)
    alone = Path(shutil.copytree(project / "run" / "bundle", tmp_path / "alone"))
    payload = sightline("evaluate", alone, everything, "--format", "json").json
    assert payload["count"] == 64
    assert payload["training_images"] == {"included": False, "identical": None, "near_duplicates": None, "images": []}
    assert "The training images of this model are not known" in sightline("evaluate", alone, everything).out


def test_an_export_is_compared_on_them_and_says_so(
    sightline: Command, project: Path, everything: Path, tmp_path: Path
) -> None:
    result = sightline("export", project / "run", "--parity", everything, "--out", tmp_path / "out", "--format", "json")
    assert result.code == 0, result.err
    assert result.json["images"] == "the given images (52 are training or validation images)"


# Runs that are not complete


@pytest.fixture
def killed(tmp_path: Path, project: Path) -> RunDirectory:
    """A run that was killed in its first epoch."""
    run = RunDirectory(Path(shutil.copytree(project / "run", tmp_path / "killed")))
    for name in ("model.keras", "model.json", "report.html"):
        (run.path / name).unlink()
    run.update(status="running")
    return run


@pytest.mark.parametrize("verb", ["evaluate", "report", "model-card"])
def test_a_killed_run_names_resume(sightline: Command, killed: RunDirectory, verb: str) -> None:
    result = sightline(verb, killed.path)
    assert (result.code, result.out) == (2, "")
    assert f"its training did not finish (status 'running'); `sightline resume {killed.path}` continues" in result.err
    with killed.lock():
        result = sightline(verb, killed.path)
    assert result.code == 2
    assert "it is still training; wait until it finishes" in result.err


def test_a_card_says_truly_why_there_is_no_bundle(sightline: Command, project_copy: Path) -> None:
    run = RunDirectory(project_copy / "run")
    shutil.rmtree(run.path / "bundle")
    for verb in (("model-card", run.path), ("export", run.path, "--to", "vectors")):
        result = sightline(*verb)
        assert result.code == 2
        assert f"its folder {run.path / 'bundle'} was removed" in result.err
    run.update(no_bundle_reason="the exported file differs from the model by up to 0.5")
    result = sightline("model-card", run.path)
    assert "has no bundle to write the model card to: the exported file differs from the model by up to" in result.err
    assert "must be complete" not in result.err
