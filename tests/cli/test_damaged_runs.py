"""A damaged or untrusted run directory: damage each file in turn, and run each command that reads it."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import sightline as sl
from command import COLORS, Command, Outcome, draw_classes
from damaged_runs import HEAVY, LIGHT, UNREAD, Invoke, WholeRun, find_faults
from drawn_scenes import draw_scenes
from sightline.api.report_writer import write_model_card
from sightline.inference.results import Thresholds
from visited_server import run_visited, run_visited_here
from watched_log import write_log

pytestmark = [
    pytest.mark.usefixtures("plain_figures"),
    pytest.mark.skipif(os.name == "nt", reason="there are no named pipes in folders"),
]
SETTINGS = [
    "model.name=cifar10-simple", "model.hidden_units=[64]", "train.epochs=1", "input.height=8", "input.width=8",
]  # fmt: skip
ROUNDS = int(os.environ.get("SIGHTLINE_DAMAGE_ROUNDS", "1"))  # for a longer search
SERVERS = ("serve", "studio")
OF_FOLDS = ("compare", "predict", "resume", "card", "describe", "report", "evaluate", "go on", "extend", "studio")
OF_MASKS = (
    *("compare", "predict", "resume", "card", "describe", "report", "embed", "push", "watch"),
    *("evaluate", "explain", "export", "go on", "extend", "serve", "studio"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_classes(tmp_path_factory.mktemp("data") / "few", COLORS, 12)


@pytest.fixture(scope="module")
def patch(data: Path) -> Path:
    """A file that corrects the label of an image, beside the images."""
    from sightline.data.label_patch import PatchEntry, write_patch

    image = data / "green" / "green-000.png"
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    entry = PatchEntry("relabel", image.relative_to(data).as_posix(), digest, "green", "blue", "looks like blue")
    return write_patch(data.parent / "patch.jsonl", [entry])


@pytest.fixture(scope="module")
def whole(data: Path, patch: Path, tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    """A complete run with every file that a run may have, and beside it a log of images."""
    from sightline.runs.directory import RunDirectory

    path = tmp_path_factory.mktemp("whole") / "run"
    sl.train(data, recipe="quick", set=SETTINGS, patch=patch, out=path, progress=False)
    run = RunDirectory.open(path)
    run.write_thresholds(Thresholds(4, target_precision=0.9, confidence=0.5, ood_limit=1.0))
    rows = run.read_data() or ()
    action = {"action": "relabel", "path": rows[0].path, "sha256": rows[0].sha256, "label": rows[0].label}
    run.write_label_issues([action | {"to": "red", "reason": "looks like red"}])
    write_model_card(path)
    classifier = sl.load(path)
    pixels = [classifier.preprocess.decode(image.read_bytes()) for image in sorted(data.rglob("*.png"))]
    write_log(classifier, path.parent / "features.log", np.stack(pixels))
    return WholeRun(path, data, data / "red" / "red-000.png", data / "red")


@pytest.fixture(scope="module")
def run_of_folds(data: Path, tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    path = tmp_path_factory.mktemp("folds") / "run"
    sl.train(data, recipe="quick", set=SETTINGS, folds=2, out=path, progress=False)
    return WholeRun(path, data, data / "red" / "red-000.png", data / "red")


@pytest.fixture(scope="module")
def run_of_masks(tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    """A complete run on scenes with masks, and beside it a log of images."""
    scenes = draw_scenes(tmp_path_factory.mktemp("scenes") / "few", 16, 16)
    path = tmp_path_factory.mktemp("masks") / "run"
    settings = {"model.task": "segmentation", "device.threads": 1}
    sl.train(scenes, recipe="fcn", epochs=1, set=settings, out=path, progress=False)
    classifier, images = sl.load(path), scenes / "val" / "images"
    pixels = [classifier.preprocess.decode(image.read_bytes()) for image in sorted(images.iterdir())]
    write_log(classifier, path.parent / "features.log", np.stack(pixels))
    return WholeRun(path, scenes, images / "1000.png", images)


@pytest.fixture
def invoke(sightline: Command, capsys: pytest.CaptureFixture[str]) -> Invoke:
    """A function that runs a command; servers run in this process too, and are visited."""

    def run(arguments: list[object], image: Path) -> Outcome:
        if arguments[0] not in SERVERS:
            return sightline(*arguments)
        capsys.readouterr()
        return run_visited_here(arguments, image=image, read=capsys.readouterr)

    return run


def test_the_run_has_every_file_that_a_run_may_have(whole: WholeRun) -> None:
    names = {path.as_posix() for path in whole.list_files()}
    assert names >= {
        "run.json", "config.toml", "data.jsonl", "patch.jsonl", "history.jsonl", "model.keras", "model.json",
        "thresholds.json", "label_issues.jsonl", "leakage.jsonl", "thumbnails.npz", "network.json",
    }  # fmt: skip


@pytest.mark.parametrize("verb", ["predict", "resume"])
def test_a_damaged_file_is_named(verb: str, whole: WholeRun, tmp_path: Path, invoke: Invoke) -> None:
    assert not find_faults(verb, whole.list_files(), whole, tmp_path / "folder", invoke, first=100)


@pytest.mark.parametrize("verb", ["resume", "push"])
def test_damage_of_a_file_that_is_written_alone_stops_no_command(
    verb: str, whole: WholeRun, tmp_path: Path, invoke: Invoke
) -> None:
    names = whole.list_files(unread=True)
    assert {name.name for name in names} >= UNREAD
    assert not find_faults(verb, names, whole, tmp_path / "folder", invoke, first=100)
    run = shutil.copytree(whole.path, tmp_path / "run")
    for name in names:
        if name.name != "lock":
            (run / name).write_bytes(b"\x00[")
    assert invoke(whole.make_arguments(verb, run), whole.image).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("verb", [*LIGHT, *HEAVY])
def test_no_damage_is_a_fault_of_ours(verb: str, whole: WholeRun, tmp_path: Path, invoke: Invoke) -> None:
    rounds = ROUNDS * (8 if verb in LIGHT else 1 if verb in SERVERS else 2)
    assert not find_faults(verb, whole.list_files(), whole, tmp_path / "folder", invoke, rounds=rounds)
    assert not find_faults(verb, whole.list_files(unread=True), whole, tmp_path / "folder", invoke)


@pytest.mark.slow
@pytest.mark.parametrize("verb", OF_FOLDS)
def test_no_damage_of_a_fold_is_a_fault_of_ours(
    verb: str, run_of_folds: WholeRun, tmp_path: Path, invoke: Invoke
) -> None:
    names = [name for name in run_of_folds.list_files() if name.parts[0] == "folds" or len(name.parts) == 1]
    assert {name.parts[:2] for name in names} >= {("folds", "0"), ("folds", "1")}
    rounds = ROUNDS * (4 if verb in LIGHT else 1)
    assert not find_faults(verb, names, run_of_folds, tmp_path / "folder", invoke, rounds=rounds)


@pytest.mark.slow
@pytest.mark.parametrize("verb", OF_MASKS)
def test_no_damage_of_a_run_of_masks_is_a_fault_of_ours(
    verb: str, run_of_masks: WholeRun, tmp_path: Path, invoke: Invoke
) -> None:
    names = run_of_masks.list_files()
    assert Path("eval/validation/predictions.npz") in names
    rounds = ROUNDS * (4 if verb in LIGHT else 1)
    assert not find_faults(verb, names, run_of_masks, tmp_path / "folder", invoke, rounds=rounds)


@pytest.mark.parametrize(
    ("verb", "name"), [("serve", "run.json"), ("serve", "bundle/model.onnx"), ("studio", "data.jsonl")]
)
def test_no_server_starts_on_a_damaged_run(verb: str, name: str, whole: WholeRun, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole.path, run)
    (run / name).write_bytes(b"[" * 100_000)
    result = run_visited(verb, run, image=whole.image)
    assert (result.code, result.out) == (2, "")
    assert Path(name).name in result.err
    assert "Traceback" not in result.err


def test_a_folder_in_place_of_a_result_is_removed_with_the_result(
    whole: WholeRun, tmp_path: Path, sightline: Command
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole.path, run)
    for name in ("report.html", "network.json", "label_issues.jsonl", "checkpoints/00000-0000000000000000.npz"):
        (run / name).unlink(missing_ok=True)
        (run / name / "inner").mkdir(parents=True)
    result = sightline("resume", run, "--epochs", "2")
    assert result.code == 0, result.err
    assert (run / "report.html").is_file()
    assert [path.is_file() for path in (run / "checkpoints").iterdir()] in ([], [True])
