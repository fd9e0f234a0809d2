"""An untrusted run directory with links: nothing outside of it is ever written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sightline as sl
from command import SMALL, TINY_SWEEP, Command, Outcome
from damage import hash_files, replace_by_links
from hub_server import Hub, Repository
from sightline.api import training_process
from sightline.api.hub import _prepare_files
from sightline.api.training import train_run
from sightline.cli import demo
from sightline.errors import OutputError
from visited_server import run_visited
from watched_log import write_log

pytestmark = [
    pytest.mark.usefixtures("plain_figures"),
    pytest.mark.skipif(os.name == "nt", reason="links need special rights on Windows"),
]

NAME = "me/colors"  # a model on the Hub
LEARNING_RATES = "[space]\ntrain.optimizer.learning_rate = [1e-3]\n"
Invoke = Callable[[str, Path], Outcome]

# Every command that writes into an existing run, and those that only read one.
VERBS: dict[str, tuple[object, ...]] = {
    "resume": ("resume", "RUN"),
    "train": ("train", "DATA", *SMALL, "--out", "RUN"),
    "train anew": ("train", "DATA", *SMALL, "--out", "RUN", "--force"),
    "evaluate": ("evaluate", "RUN", "--target-precision", "0.6"),
    "report": ("report", "RUN"),
    "card": ("model-card", "RUN"),
    "predict": ("predict", "RUN", "DATA"),
    "similar": ("similar", "RUN", "IMAGE", "DATA/red"),
    "compare": ("compare", "RUN", "OTHER"),
    "push": ("push", "RUN", f"hf:{NAME}"),
    "demo": ("demo", "--out", "RUN", "--epochs", "1"),
}

# Every command that writes into a folder inside the run: its own, or one named by the user.
INSIDE: dict[str, tuple[object, ...]] = {
    "export": ("export", "RUN"),
    "export a folder": ("export", "RUN", "--to", "saved_model"),
    "export --out": ("export", "RUN", "--out", "RUN/mine/model.onnx"),
    "export a bundle": ("export", "RUN", "--to", "bundle"),
    "export vectors": ("export", "RUN", "--to", "vectors"),
    "compress": ("compress", "RUN", "--methods", "float16", "--epochs", "0"),
    "compress again": ("compress", "RUN", "--methods", "float16", "--epochs", "0", "--max-drop", "100"),
    "explain --out": ("explain", "RUN", "IMAGE", "--method", "occlusion", "--out", "RUN/why"),
    "predict --out": ("predict", "RUN", "DATA", "--out", "RUN/mine/rows.csv"),
    "describe --diagram": ("describe", "RUN", "--diagram", "RUN/mine/network.svg"),
    "preview --out": ("preview", "DATA", "--out", "RUN/mine/sheet.png"),
    "compare --figure": ("compare", "RUN", "OTHER", "--figure", "RUN/mine/curves.png"),
    "demo --out": ("demo", "--out", "RUN/mine/demo", "--epochs", "1"),
    "doctor": ("doctor", "DATA", "--html", "RUN/mine/page.html", "--write-fixes", "RUN/mine/fix.jsonl"),
    "add-class": ("add-class", "RUN", "scarlet", "DATA/red"),
    "add-class --out": ("add-class", "RUN", "scarlet", "DATA/red", "--out", "RUN/mine/with", "--force"),
    "embed to CSV": ("embed", "RUN", "DATA/red", "--out", "RUN/mine/red.csv"),
    "embed to NumPy": ("embed", "RUN", "DATA/red", "--out", "RUN/mine/red.npy"),
    "embed to Parquet": ("embed", "RUN", "DATA/red", "--out", "RUN/mine/red.parquet"),
    "watch": ("watch", "LOG", "RUN", "--reference", "DATA", "--figure", "RUN/mine/evidence.png"),
    "pull": ("pull", f"hf:{NAME}", "RUN/mine"),
    "train inside": ("train", "DATA", *SMALL, "--out", "RUN/mine/run", "--force"),
    "sweep": ("sweep", "DATA", "SPACE", "--out", "RUN/mine"),
    "learning-curve": (
        "learning-curve", "DATA", "--set", "input.height=32", "--no-cache", "--figure", "RUN/mine/curve.png",
    ),
    "serve": ("serve", "RUN", "--log-features", "RUN/mine/features.log"),
    "studio": ("studio", "RUN", "--patch", "RUN/mine/fixes.jsonl"),
}  # fmt: skip
CHEAP = [verb for verb in INSIDE if INSIDE[verb][0] in {"compare", "describe", "doctor", "embed", "preview", "watch"}]
OF_STUDIO = {"/corrections": {"ids": [0], "edit": "drop", "to": None}, "/folders": {}}  # what a page of it writes


@pytest.fixture(scope="module")
def stopped(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every file that a run may have, including checkpoints, as if it was killed at the end."""
    from sightline.api.training import train_run
    from sightline.runs.directory import RunDirectory
    from sightline.training import checkpoints

    path = tmp_path_factory.mktemp("stopped") / "run"
    train_run(
        colors, recipe="quick", set=["model.name=cifar10-simple", "model.hidden_units=[64]", "train.epochs=1"], out=path
    )
    run = RunDirectory.open(path)
    checkpoints.write_checkpoint(run.checkpoints, 1, checkpoints.Checkpoint({}, {}))
    return path


@pytest.fixture(scope="module")
def inputs(stopped: Path, colors: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run, a log of features and a search space, by the words of `VERBS` and `INSIDE`."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "space.toml").write_text(TINY_SWEEP.replace("epochs = 3", "epochs = 1") + LEARNING_RATES)
    classifier = sl.load(stopped)
    pixels = [classifier.preprocess.decode(path.read_bytes()) for path in sorted((colors / "red").iterdir())]
    write_log(classifier, folder / "features.log", np.stack(pixels))
    return {"SPACE": folder / "space.toml", "LOG": folder / "features.log", "OTHER": stopped}


@pytest.fixture
def invoke(
    hub: Hub, stopped: Path, colors: Path, inputs: dict[str, Path], sightline: Command, monkeypatch: pytest.MonkeyPatch
) -> Invoke:
    """A function that runs a command on a run; servers are visited, and the Hub has the run's model.

    The trials of a sweep train in this process, which saves the time of their imports; the demo has smaller images.
    """
    monkeypatch.setattr(training_process, "train_in_subprocess", train_run)
    monkeypatch.setattr(demo, "SOURCE", "beans:60@32")
    hub.repositories[NAME] = Repository(private=True)
    hub.repositories[NAME].add(dict(_prepare_files(stopped, NAME, "other", include_images=False)))

    def run_verb(verb: str, run: Path) -> Outcome:
        arguments = list(arguments_for(verb, run, colors, inputs))
        if verb not in {"serve", "studio"}:
            return sightline(*arguments)
        changes = OF_STUDIO if verb == "studio" else None
        return run_visited(verb, *arguments[1:], image=colors / "red" / "red-000.png", changes=changes)

    return run_verb


def arguments_for(verb: str, run: Path, data: Path, inputs: dict[str, Path]) -> Iterator[object]:
    names = {"RUN": run, "DATA": data, "IMAGE": data / "red" / "red-000.png"} | inputs
    for word in (VERBS | INSIDE)[verb]:
        first, slash, rest = word.partition("/") if isinstance(word, str) else (word, "", "")
        yield f"{names[first]}{slash}{rest}" if first in names else word


@pytest.mark.parametrize("folders", [False, True], ids=["files", "folders"])
@pytest.mark.parametrize("verb", VERBS)
def test_no_command_writes_through_a_link(
    verb: str, folders: bool, stopped: Path, colors: Path, tmp_path: Path, invoke: Invoke
) -> None:
    run, stash = tmp_path / "run", tmp_path / "stash"
    shutil.copytree(stopped, run)
    replace_by_links(run, stash, folders=folders)
    before = hash_files(stash), hash_files(colors)
    result = invoke(verb, run)
    assert result.code in {0, 1, 2}, result.err
    assert "Traceback" not in result.err
    assert (hash_files(stash), hash_files(colors)) == before


@pytest.fixture(scope="module")
def used(stopped: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Invoke], Path]:
    """A function that returns a run into which a command of `INSIDE` has already written."""
    runs: dict[str, Path] = {}

    def use(verb: str, invoke: Invoke) -> Path:
        if verb not in runs:
            run = shutil.copytree(stopped, tmp_path_factory.mktemp("used") / "run")
            (run / "mine").mkdir()
            result = invoke(verb, run)
            assert result.code in {0, 1}, result.err
            runs[verb] = run
        return runs[verb]

    return use


@pytest.mark.slow_with("learning-curve-own", "studio-own", "serve-own", "sweep-own", "demo --out-own")
@pytest.mark.parametrize(
    "links", [pytest.param("files", marks=pytest.mark.slow), pytest.param("folders", marks=pytest.mark.slow), "own"]
)
@pytest.mark.parametrize("verb", INSIDE)
def test_nothing_is_written_through_a_link_inside_a_run(
    verb: str, links: str, used: Callable[[str, Invoke], Path], stopped: Path, colors: Path, tmp_path: Path,
    invoke: Invoke,
) -> None:  # fmt: skip
    run, stash = tmp_path / "run", tmp_path / "stash"
    shutil.copytree(used(verb, invoke), run)
    if links == "own":  # only its own outputs, so that no other link stops it earlier
        stash.mkdir()
        own = sorted({p.name for p in run.iterdir()} - {p.name for p in stopped.iterdir()})
        assert own, "it wrote nothing into the run"
        for name in own:
            shutil.move(run / name, stash / name)
            (run / name).symlink_to(stash / name)
    else:
        replace_by_links(run, stash, folders=links == "folders")
    before = hash_files(stash), hash_files(colors)
    result = invoke(verb, run)
    assert result.code in {0, 1, 2}, result.err
    assert "Traceback" not in result.err
    assert (hash_files(stash), hash_files(colors)) == before


def check_each_link(verb: str, run: Path, names: list[str], folder: Path, invoke: Invoke) -> None:
    """Run a command on copies of a run, each with one file or folder as a link: no other one stops it earlier."""
    for name in names:
        copy, stash = folder / "run", folder / "stash"
        shutil.copytree(run, copy)
        stash.mkdir()
        shutil.move(copy / name, stash / "victim")
        (copy / name).symlink_to(stash / "victim")
        before = hash_files(stash)
        result = invoke(verb, copy)
        assert result.code in {0, 1, 2}, (name, result.err)
        assert "Traceback" not in result.err, name
        assert hash_files(stash) == before, name
        shutil.rmtree(copy)
        shutil.rmtree(stash)


def list_names(run: Path) -> list[str]:
    return sorted(path.relative_to(run).as_posix() for path in run.rglob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "demo"])
def test_no_command_writes_through_a_single_link(verb: str, stopped: Path, tmp_path: Path, invoke: Invoke) -> None:
    check_each_link(verb, stopped, list_names(stopped), tmp_path, invoke)


@pytest.mark.slow
@pytest.mark.parametrize("verb", CHEAP)
def test_no_command_writes_through_a_single_link_inside_a_run(
    verb: str, used: Callable[[str, Invoke], Path], stopped: Path, tmp_path: Path, invoke: Invoke
) -> None:
    run = used(verb, invoke)
    own = sorted(set(list_names(run)) - set(list_names(stopped)))
    assert own, "it wrote nothing into the run"
    check_each_link(verb, run, own, tmp_path, invoke)


@pytest.mark.slow
def test_the_demo_writes_through_no_link(tmp_path: Path, invoke: Invoke) -> None:
    """With one link at a time in the run of the demo itself."""
    run = tmp_path / "demo"
    assert invoke("demo", run).code == 0
    names = [*sorted(path.name for path in run.iterdir()), *(f"new/{name}" for name in list_names(run / "new"))]
    check_each_link("demo", run, names, tmp_path / "copies", invoke)


def test_resume_says_that_the_lock_is_a_link(stopped: Path, tmp_path: Path, sightline: Command) -> None:
    run, victim = tmp_path / "run", tmp_path / "victim"
    shutil.copytree(stopped, run)
    victim.write_text("precious", encoding="utf-8")
    (run / "lock").unlink()
    (run / "lock").symlink_to(victim)
    result: Any = sightline("resume", run)
    assert result.code == 2
    assert "lock is a link or not a regular file, so nothing is written there: remove it." in " ".join(
        result.err.split()
    )
    assert victim.read_text(encoding="utf-8") == "precious"


def test_demo_images_replace_links(stopped: Path, tmp_path: Path) -> None:
    from sightline.cli.demo import draw_images

    run, victim = tmp_path / "run", tmp_path / "victim"
    shutil.copytree(stopped, run)
    victim.write_text("precious", encoding="utf-8")
    (run / "new").mkdir()
    (run / "new" / "light-1.png").symlink_to(victim)
    paths = draw_images(run / "new", 2, 32)
    assert [path.is_symlink() for path in paths] == [False, False]
    assert victim.read_text(encoding="utf-8") == "precious"
    shutil.rmtree(run / "new")
    (run / "new").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="nothing is written through links"):
        draw_images(run / "new", 2, 32)
