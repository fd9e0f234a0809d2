"""`sightline resume` of runs that were killed, interrupted or ran out of disk space."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sightline as face
from command import COLORS, SMALL, Command, draw_classes
from kill_process import MOMENTS, RunPaths, after, read_history, read_weights_hash, run_and_kill
from sightline.errors import Interrupted

pytestmark = [
    pytest.mark.usefixtures("plain_figures"),
    pytest.mark.skipif(os.name == "nt", reason="signals cannot be sent to one process on Windows"),
]

DATA = "beans:100@32"
STAGES = """
[augment]
horizontal_flip = true
rotation = 5
[[train.stages]]
name = "head"
unfreeze = 0
epochs = 2
views = 2
[[train.stages]]
name = "all"
unfreeze = -1
epochs = 2
"""
HEAD = ("--set", "model.hidden_units=[64]")
KINDS = {
    "scratch": ("--model", "cifar10-simple", *HEAD, "--epochs", 4, "--set", "train.checkpoint_steps=1"),
    "staged": ("--model", "cifar10-deep", "--set", "train.checkpoint_steps=3", "--set", "input.height=16"),
}


def make_place(folder: Path) -> RunPaths:
    return RunPaths(folder / "run", folder / "cache")


def train(kind: str, where: RunPaths) -> tuple[object, ...]:
    where.run.parent.mkdir(parents=True, exist_ok=True)
    stages = where.run.parent / "stages.toml"
    stages.write_text(STAGES if kind == "staged" else "", encoding="utf-8")
    common = ("--recipe", "quick", "--set", "train.batch_size=16", "--config", stages)
    return ("train", DATA, *common, *KINDS[kind], "--out", where.run, "--format", "json")


def resume(where: RunPaths) -> tuple[object, ...]:
    return ("resume", where.run, "--format", "json")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, list[tuple[object, ...]]]]:
    """The weights and the history of an uninterrupted run of each kind, trained on first use."""

    class LazyOutcomes(dict[str, tuple[str, list[tuple[object, ...]]]]):
        def __missing__(self, kind: str) -> tuple[str, list[tuple[object, ...]]]:
            where = make_place(tmp_path_factory.mktemp(f"untouched-{kind}"))
            self[kind] = read_weights_hash(run_and_kill(where, train(kind, where))), read_history(where)
            return self[kind]

    return LazyOutcomes()


@pytest.mark.slow
def test_killed_at_four_moments_on_one_core_at_last(untouched: Any, tmp_path: Path) -> None:
    """While indexing, while training, later while training on one core, and while evaluating."""
    where = make_place(tmp_path)
    assert run_and_kill(where, train("staged", where), MOMENTS["indexing"]).killed
    assert not (where.run / "config.toml").exists()
    assert run_and_kill(where, resume(where), MOMENTS["second epoch"]).killed
    assert run_and_kill(where, resume(where), MOMENTS["later"], pinned=True).killed
    assert run_and_kill(where, resume(where), MOMENTS["evaluation"]).killed
    ended = run_and_kill(where, resume(where))
    assert read_weights_hash(ended) == untouched["staged"][0]
    assert read_history(where) == untouched["staged"][1]
    assert json.loads((where.run / "run.json").read_text())["resumed"] == 4
    assert not list(where.run.rglob("*.part*"))
    assert len(list((where.run / "checkpoints").iterdir())) == 1, "the last one, for `resume --epochs`"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [*MOMENTS, *range(10)])
def test_killed_at_any_moment(untouched: Any, tmp_path: Path, kind: str, at: str | int) -> None:
    """Killed at that moment and again soon after resuming, then resumed, half of the time on one core."""
    where = make_place(tmp_path)
    chance = random.Random(f"{kind} {at}")  # noqa: S311  # moments, not secrets
    moment = MOMENTS[at] if isinstance(at, str) else after(chance.uniform(1, 14))
    first = run_and_kill(where, train(kind, where), moment)
    if not where.run.exists():
        pytest.skip("killed before there was a run")
    if first.killed:
        run_and_kill(where, resume(where), after(chance.uniform(4, 10)))
    decided = (where.run / "config.toml").exists()  # before that, one core is another machine, with other weights
    last = run_and_kill(where, resume(where), pinned=chance.random() < 0.5 and decided)
    assert read_weights_hash(last) == untouched[kind][0]
    assert read_history(where) == untouched[kind][1]
    if not first.killed:
        pytest.skip("its weights are right, but it finished before that moment")


@pytest.mark.slow  # test_train.py interrupts a training too, and tests/training/test_resuming.py compares the weights
@pytest.mark.parametrize("name", MOMENTS)
def test_sigterm_ends_with_130_within_ten_seconds(untouched: Any, tmp_path: Path, name: str) -> None:
    where = make_place(tmp_path)
    ended = run_and_kill(where, train("staged", where), MOMENTS[name], number=signal.SIGTERM)
    if not ended.killed:
        pytest.skip("it finished before the signal")
    assert ended.code == 130, ended.err
    assert ended.seconds < 10
    assert f"sightline resume {where.run}" in ended.err
    assert json.loads((where.run / "run.json").read_text())["status"] == "interrupted"
    assert read_weights_hash(run_and_kill(where, resume(where))) == untouched["staged"][0]


FULL = """
import resource, signal
from sightline.training import {module} as there
kept = there.{name}
def {name}(*arguments, **options):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    try:
        return kept(*arguments, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
there.{name} = {name}
"""


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_the_disk(untouched: Any, tmp_path: Path) -> None:
    """Limit files to 20 kB while later checkpoints are written: the first one stays and is used."""
    where = make_place(tmp_path)
    assert run_and_kill(where, train("staged", where), MOMENTS["second epoch"]).killed
    first = sorted((where.run / "checkpoints").iterdir())
    full = run_and_kill(where, resume(where), before=FULL.format(module="checkpoints", name="write_checkpoint"))
    assert full.code == 2
    assert "File too large. Free some space" in full.err
    assert f"`sightline resume {where.run}` continues" in full.err
    assert "Traceback" not in full.err
    remaining = [path for path in sorted((where.run / "checkpoints").iterdir()) if path.suffix == ".npz"]
    assert remaining
    assert set(remaining) <= set(first)
    assert read_weights_hash(run_and_kill(where, resume(where))) == untouched["staged"][0]


def test_a_cache_that_does_not_fit_the_disk(sightline: Command, tmp_path: Path, own_cache: Path) -> None:
    import resource

    data = draw_classes(tmp_path / "data", COLORS, 12)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        result = sightline("train", data, *SMALL, "--out", tmp_path / "r")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert result.code == 2
    assert f"The cache folder {own_cache} cannot be written" in result.err
    assert f"`sightline resume {tmp_path / 'r'}` continues" in result.err
    assert list(own_cache.iterdir()) == []
    assert sightline("resume", tmp_path / "r", "--format", "json").json["epochs"] == 2


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data`` and ``r``, a run on it that was interrupted before its evaluation."""
    from sightline.runs import pipeline

    folder = tmp_path_factory.mktemp("stopped")
    data = draw_classes(folder / "data", COLORS, 12)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "finalize", stop)
        with pytest.raises(Interrupted):
            face.train(
                data, recipe="quick", model="cifar10-simple", epochs=2, set=["model.hidden_units=[64]"],
                out=folder / "r", progress=False,
            )  # fmt: skip
    return folder


@pytest.fixture
def stopped(stopped_run: Path, tmp_path: Path) -> Iterator[Path]:
    """The run of `stopped_run`, which a test may change: it is put back afterwards, at the path that it states."""
    shutil.copytree(stopped_run, tmp_path / "kept")
    yield stopped_run / "r"
    shutil.rmtree(stopped_run)
    (tmp_path / "kept").rename(stopped_run)


def test_train_points_to_resume(sightline: Command, stopped: Path) -> None:
    (stopped / ".part-abc" / "bundle").mkdir(
        parents=True
    )  # as left by a process that was killed while writing the bundle
    (stopped / ".part-7-model.keras").write_text("half")
    data = stopped.parent / "data"
    same = sightline("train", data, *SMALL, "--out", stopped)
    assert (same.code, f"`sightline resume {stopped}` continues" in same.err) == (2, True)
    other = sightline("train", data, *SMALL, "--seed", 3, "--out", stopped)
    assert (other.code, "seed is 0, not 3" in other.err) == (2, True)
    result = sightline("resume", stopped, "--format", "json")
    assert result.code == 0, result.err
    assert result.out.count("\n") == 1
    again = sightline("resume", stopped, "--format", "json")
    assert again.json["weights_sha256"] == result.json["weights_sha256"]
    assert "nothing to do; --epochs N continues it" in again.err
    assert not list(stopped.rglob("*.part-*"))


def test_other_images_are_refused_and_the_run_stays(sightline: Command, stopped: Path) -> None:
    data = stopped.parent / "data"
    gone = next(data.rglob("*.png"))
    content = gone.read_bytes()
    gone.unlink()
    result = sightline("resume", stopped)
    assert result.code == 2
    assert f"(1 of 36 are missing or changed and 0 are new, such as {gone.relative_to(data)})" in result.err
    gone.write_bytes(content)
    moved = data.rename(stopped.parent / "elsewhere")
    before = {path: path.read_bytes() for path in stopped.rglob("*.*") if path.is_file()}
    result = sightline("resume", stopped)
    assert result.code == 2
    sentence = f"are no longer at {data}: restore them, or say where they are now: `sightline resume {stopped} FOLDER`."
    assert sentence in result.err
    assert {path: path.read_bytes() for path in before} == before
    assert sightline("resume", stopped, moved).code == 0


def test_a_damaged_checkpoint_gives_way_to_the_one_before(sightline: Command, stopped: Path) -> None:
    newest = max((stopped / "checkpoints").glob("*.npz"))
    newest.write_bytes(newest.read_bytes()[:-50])
    result = sightline("resume", stopped, "--format", "json")
    assert result.code == 0
    assert f"{newest} is damaged" in result.err


@pytest.mark.parametrize("verb", ["resume", "train", "force"])
def test_a_run_in_use_is_refused(sightline: Command, stopped: Path, verb: str) -> None:
    """The lock is held by another process, and released when that is killed."""
    code = "import sys, time; from pathlib import Path; from sightline.runs.directory import RunDirectory\n"
    code += "with RunDirectory(Path(sys.argv[1])).lock(): print('held', flush=True); time.sleep(600)"
    train = ("train", stopped.parent / "data", *SMALL, "--out", stopped)
    command = {"resume": ("resume", stopped), "train": train, "force": (*train, "--force")}[verb]
    with subprocess.Popen([sys.executable, "-c", code, str(stopped)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        result = sightline(*command)
        holder.kill()
    assert result.code == 2
    assert f"is in use by another process ({holder.pid})" in result.err
    assert (stopped / "config.toml").exists()
    assert sightline("resume", stopped).code == 0


def test_a_folder_that_is_not_a_run_is_rejected_in_one_sentence(sightline: Command, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "lock").touch()
    (tmp_path / "r" / ".part-7-run.json").write_text("{")
    data = draw_classes(tmp_path / "data", COLORS, 12)
    result = sightline("resume", tmp_path / "r")
    assert (result.code, "is not a run" in result.err, "start it again" in result.err) == (2, True, True)
    for command in ("resume", "report", "compress", "model-card", "evaluate", "predict"):
        result = sightline(command, tmp_path / "absent", *([data] if command == "predict" else []))
        assert (result.code, "no folder" in result.err or "no such file or folder" in result.err) == (2, True)
    assert sightline("train", data, *SMALL, "--out", tmp_path / "r").code == 0


@pytest.mark.parametrize("library", ["numpy", pytest.param("tensorflow", marks=pytest.mark.slow)])
def test_too_little_memory_names_what_to_lower(
    sightline: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    """Raises the library's own error, as a process limit would crash native code; TensorFlow tries for ten seconds."""
    from sightline import backend

    def greedy(*_: object, **__: object) -> None:
        if library == "numpy":
            np.zeros(1 << 50)
        backend.tensorflow().zeros([1 << 45])

    monkeypatch.setattr("sightline.training.loop.fit", greedy)
    result = sightline("train", draw_classes(tmp_path / "data", COLORS, 12), *SMALL, "--out", tmp_path / "r")
    assert result.code == 2
    assert re.search(r"a lower train\.batch_size, now \d+, or input\.height, now 32 \(", result.err)
    assert {"numpy": "Unable to allocate 8.00 PiB", "tensorflow": "OOM when allocating"}[library] in result.err
    assert "Traceback" not in result.err


@pytest.mark.slow
def test_the_demand_for_determinism_changes_no_bit(untouched: Any, tmp_path: Path) -> None:
    where = make_place(tmp_path)
    ended = run_and_kill(where, (*train("scratch", where), "--deterministic"))
    assert read_weights_hash(ended) == untouched["scratch"][0]
    assert "deterministic = true" in (where.run / "config.toml").read_text()


MEMORY = """
import os, sys
import sightline
from sightline.callbacks import Callback
class Resident(Callback):
    def on_epoch_end(self, record):
        pages = int(open("/proc/self/statm").read().split()[1])
        print(pages * os.sysconf("SC_PAGE_SIZE"), flush=True)
sightline.train("beans:100@32", recipe="quick", out=sys.argv[1], callback=Resident(),
    set=["model.name=cifar10-simple", "train.epochs=20", "augment.rotation=5", "train.early_stopping.patience=0"])
"""


@pytest.mark.slow
def test_resident_memory_does_not_grow(tmp_path: Path) -> None:
    """A leak of one copy of the weights (17 MB) per epoch would add over 150 MB between the second and the last epoch.

    Writing a checkpoint temporarily takes two copies, some of which may stay in the C library's heap: so compare the
    minimum of the last five epochs with the maximum of the five after the first.
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("/proc/self/statm exists on Linux only")
    completed = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "r")], capture_output=True, text=True, check=True
    )
    sizes = [int(line) / 2**20 for line in completed.stdout.split()]
    assert len(sizes) == 20
    assert min(sizes[15:]) - max(sizes[1:6]) < 40, sizes


@pytest.mark.parametrize("deterministic", [False, True])
def test_another_machine_is_reported_and_rejected_for_a_deterministic_run(
    sightline: Command, stopped: Path, *, deterministic: bool
) -> None:
    config = (stopped / "config.toml").read_text("utf-8")
    assert "deterministic = false" in config
    (stopped / "config.toml").write_text(
        config.replace("deterministic = false", f"deterministic = {str(deterministic).lower()}"), "utf-8"
    )
    file = stopped / "run.json"
    facts = json.loads(file.read_text())
    assert facts["processor"]
    file.write_text(json.dumps(facts | {"processor": "Z80", "versions": facts["versions"] | {"keras": "1.0"}}))
    result = sightline("resume", stopped)
    assert "keras 1.0 then" in result.err
    assert "processor Z80 then" in result.err
    if deterministic:
        assert result.code == 2
        assert "set device.deterministic = false" in result.err
        assert json.loads(file.read_text())["status"] == "interrupted", "nothing was changed"
    else:
        assert result.code == 0
