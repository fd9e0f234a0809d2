"""A damaged or untrusted run directory: damage each file in turn, and run each command that reads it."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from command import COLORS, Command, draw_classes
from damage import Damage, choose_damage
from sightline.inference.results import Thresholds
from visited_server import run_visited
from watched_log import write_log

pytestmark = [
    pytest.mark.usefixtures("plain_figures"),
    pytest.mark.skipif(os.name == "nt", reason="there are no named pipes in folders"),
]

TINY = ("--recipe", "quick", "--model", "cifar10-simple", "--set", "model.hidden_units=[64]", "--epochs", "1")
SMALL = ("--set", "input.height=8", "--set", "input.width=8")
UNREAD = {"report.html", "history.csv", "lock", "README.md"}  # never read, or tested elsewhere

# Fast commands that read a run, and slow ones that train or evaluate.
LIGHT: dict[str, tuple[str, ...]] = {
    "compare": ("compare", "RUN", "OTHER"),
    "predict": ("predict", "RUN", "IMAGE"),
    "resume": ("resume", "RUN"),
    "card": ("model-card", "RUN"),
    "describe": ("describe", "RUN"),
    "report": ("report", "RUN"),
    "embed": ("embed", "RUN", "IMAGE", "--out", "VECTORS"),
    "similar": ("similar", "RUN", "IMAGE", "IMAGES"),
    "push": ("push", "RUN", "hf:me/colors", "--dry-run"),
    "watch": ("watch", "LOG", "RUN", "--reference", "DATA"),
}
HEAVY: dict[str, tuple[str, ...]] = {
    "extend": ("resume", "RUN", "--epochs", "2"),
    "train": ("train", "DATA", *TINY, *SMALL, "--patch", "PATCH", "--out", "RUN"),
    "evaluate": ("evaluate", "RUN"),
    "explain": ("explain", "RUN", "IMAGE", "--out", "HEAT"),
    "compress": ("compress", "RUN", "--methods", "shrink-head,float16", "--epochs", "1", "--out", "SEARCH"),
    "export": ("export", "RUN", "--out", "EXPORT"),
    "go on": ("resume", "RUN"),
    "add-class": ("add-class", "RUN", "scarlet", "IMAGES", "--out", "ADDED"),
    "serve": ("serve", "RUN"),
    "studio": ("studio", "RUN", "--patch", "FIXES"),
}


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
def complete_run(data: Path, patch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run with every file that a run may have, and beside it a log of images."""
    import sightline as sl
    from sightline.runs.directory import RunDirectory

    path = tmp_path_factory.mktemp("whole") / "run"
    settings = [
        "model.name=cifar10-simple",
        "model.hidden_units=[64]",
        "train.epochs=1",
        "input.height=8",
        "input.width=8",
    ]
    sl.train(data, recipe="quick", set=settings, patch=patch, out=path, progress=False)
    run = RunDirectory.open(path)
    run.write_thresholds(Thresholds(4, target_precision=0.9, confidence=0.5, ood_limit=1.0))
    rows = run.read_data() or ()
    action = {"action": "relabel", "path": rows[0].path, "sha256": rows[0].sha256, "label": rows[0].label}
    run.write_label_issues([action | {"to": "red", "reason": "looks like red"}])
    classifier = sl.load(path)
    pixels = [classifier.preprocess.decode(image.read_bytes()) for image in sorted(data.rglob("*.png"))]
    write_log(classifier, path.parent / "features.log", np.stack(pixels))
    return path


def test_the_run_has_every_file_that_a_run_may_have(complete_run: Path) -> None:
    names = {path.as_posix() for path in list_files(complete_run)}
    assert names >= {
        "run.json", "config.toml", "data.jsonl", "patch.jsonl", "history.jsonl", "model.keras", "model.json",
        "thresholds.json", "label_issues.jsonl", "leakage.jsonl", "thumbnails.npz", "network.json",
    }  # fmt: skip


def list_files(run: Path) -> list[Path]:
    """Return the files of a run that any command reads."""
    every = (p.relative_to(run) for p in sorted(run.rglob("*")) if p.is_file())
    return [name for name in every if name.name not in UNREAD and name.parts[0] not in {"figures", "tensorboard"}]


def fit_name(path: Path) -> None:
    """Rename a checkpoint to match its content, so that more than its hash is checked."""
    if path.parent.name == "checkpoints" and path.is_file():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(path.with_name(f"00009-{digest[:16]}.npz"))


def arguments_for(verb: str, run: Path, data: Path, other: Path) -> list[object]:
    places: dict[str, object] = {
        "RUN": run, "DATA": data, "OTHER": other, "IMAGE": data / "red" / "red-000.png", "HEAT": run.parent / "heat",
        "EXPORT": run.parent / "export.zip", "VECTORS": run.parent / "vectors.csv", "IMAGES": data / "red",
        "ADDED": run.parent / "added", "FIXES": run.parent / "fixes.jsonl", "SEARCH": run.parent / "search",
        "LOG": other.parent / "features.log", "PATCH": data.parent / "patch.jsonl",
    }  # fmt: skip
    return [places.get(word, word) for word in (LIGHT | HEAVY)[verb]]


def check(verb: str, name: Path, number: int, places: tuple[Path, Path, Path], sightline: Command) -> str | None:
    """Damage one file of a fresh copy and run a command on it; return what is wrong with the outcome, if anything."""
    complete_run, data, folder = places
    shutil.rmtree(folder, ignore_errors=True)
    run = folder / "run"
    shutil.copytree(complete_run, run)
    if verb == "go on":
        from sightline.runs.directory import RunDirectory

        RunDirectory.open(run).update(status="interrupted", drop=("result",))
    applied_damage: Damage = choose_damage(run / name, number)
    applied_damage.apply(run / name)
    fit_name(run / name)
    arguments = arguments_for(verb, run, data, complete_run)
    if verb in {"serve", "studio"}:
        result = run_visited(verb, *arguments[1:], image=data / "red" / "red-000.png")
    else:
        result = sightline(*arguments)
    what = f"{verb}, {name}, damage {number}: {applied_damage.description}: {result.err[-2000:]}"
    if result.code not in {0, 1, 2} or "Traceback" in result.err:
        return f"code {result.code}: {what}"
    text = "".join(result.err.split())
    named = any(split in text for split in name.parts) or (verb in HEAVY and str(run) in text)
    return f"the message names no file: {what}" if result.code == 2 and not named else None


@pytest.mark.parametrize("verb", LIGHT)
def test_a_damaged_file_is_named(verb: str, complete_run: Path, data: Path, tmp_path: Path, sightline: Command) -> None:
    places = complete_run, data, tmp_path / "folder"
    failures = [check(verb, name, 100 + i, places, sightline) for i, name in enumerate(list_files(complete_run))]
    assert not any(failures), "\n".join(filter(None, failures))


@pytest.mark.slow
@pytest.mark.parametrize("verb", [*LIGHT, *HEAVY])
def test_no_damage_is_a_fault_of_ours(
    verb: str, complete_run: Path, data: Path, tmp_path: Path, sightline: Command
) -> None:
    rounds = int(os.environ.get("SIGHTLINE_DAMAGE_ROUNDS", "1"))  # for a longer search
    places = complete_run, data, tmp_path / "folder"
    failures = [
        check(verb, name, 1000 * number + i, places, sightline)
        for number in range(rounds * (8 if verb in LIGHT else 2))
        for i, name in enumerate(list_files(complete_run))
    ]
    assert not any(failures), "\n".join(filter(None, failures))


@pytest.mark.parametrize(
    ("verb", "name"), [("serve", "run.json"), ("serve", "bundle/model.onnx"), ("studio", "data.jsonl")]
)
def test_no_server_starts_on_a_damaged_run(
    verb: str, name: str, complete_run: Path, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(complete_run, run)
    (run / name).write_bytes(b"[" * 100_000)
    result = run_visited(verb, run, image=data / "red" / "red-000.png")
    assert (result.code, result.out) == (2, "")
    assert Path(name).name in result.err
    assert "Traceback" not in result.err


def test_a_folder_in_place_of_a_result_is_removed_with_the_result(
    complete_run: Path, tmp_path: Path, sightline: Command
) -> None:
    run = tmp_path / "run"
    shutil.copytree(complete_run, run)
    for name in ("report.html", "network.json", "label_issues.jsonl", "checkpoints/00000-0000000000000000.npz"):
        (run / name).unlink(missing_ok=True)
        (run / name / "inner").mkdir(parents=True)
    result = sightline("resume", run, "--epochs", "2")
    assert result.code == 0, result.err
    assert (run / "report.html").is_file()
    assert [path.is_file() for path in (run / "checkpoints").iterdir()] in ([], [True])
