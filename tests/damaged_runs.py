"""Runs with one damaged file each, and the commands that read them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from command import Outcome
from damage import choose_damage

Invoke = Callable[[list[object], Path], Outcome]
"""Runs a command; the path is an image to send if the command is a server."""


TINY = ("--recipe", "quick", "--model", "cifar10-simple", "--set", "model.hidden_units=[64]", "--epochs", "1")
SMALL = ("--set", "input.height=8", "--set", "input.width=8")
UNREAD = {"report.html", "history.csv", "lock"}  # files that are written and never read
UNREAD_FOLDERS = {"figures", "tensorboard"}  # outside the bundle, whose files are hashed

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


@dataclass(frozen=True, slots=True)
class WholeRun:
    """A complete run with its data, one image and a folder of images.

    There may be a patch beside the data, and a feature log beside the run.
    """

    path: Path
    data: Path
    image: Path
    images: Path

    def list_files(self, *, unread: bool = False) -> list[Path]:
        """Return the files of the run that commands read, or `unread` ones, with only one file per unread folder."""
        every = [p.relative_to(self.path) for p in sorted(self.path.rglob("*")) if p.is_file()]
        of_run = (name for name in every if "bundle" not in name.parts)
        in_folder = {name.parent: name for name in of_run if not UNREAD_FOLDERS.isdisjoint(name.parts)}
        alone = [name for name in every if name.name in UNREAD]
        if unread:
            return [*alone, *in_folder.values()]
        return [name for name in every if name not in alone and name.parent not in in_folder]

    def make_arguments(self, verb: str, run: Path) -> list[object]:
        """Return the arguments for running a command on a copy of the run."""
        beside = run.parent
        places: dict[str, object] = {
            "RUN": run, "DATA": self.data, "OTHER": self.path, "IMAGE": self.image, "IMAGES": self.images,
            "HEAT": beside / "heat", "EXPORT": beside / "export.zip", "VECTORS": beside / "vectors.csv",
            "ADDED": beside / "added", "FIXES": beside / "fixes.jsonl", "SEARCH": beside / "search",
            "LOG": self.path.parent / "features.log", "PATCH": self.data.parent / "patch.jsonl",
        }  # fmt: skip
        return [places.get(word, word) for word in (LIGHT | HEAVY)[verb]]


def fit_name(path: Path) -> None:
    """Rename a checkpoint to match its content, so that more than its hash is checked."""
    if path.parent.name == "checkpoints" and path.is_file():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(path.with_name(f"00009-{digest[:16]}.npz"))


def hash_contents(run: Path) -> dict[Path, str]:
    """Return the hash of each file of a run, except its lock."""
    files = (path for path in run.rglob("*") if path.is_file() and path.name != "lock")
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check(verb: str, name: Path, number: int, whole: WholeRun, folder: Path, invoke: Invoke) -> str | None:
    """Damage one file of a fresh copy and run a command on it; return any problem with the outcome."""
    shutil.rmtree(folder, ignore_errors=True)
    run = folder / "run"
    shutil.copytree(whole.path, run)
    if verb == "go on":
        from sightline.runs.directory import RunDirectory

        RunDirectory.open(run).update(status="interrupted", drop=("result",))
    damage = choose_damage(run / name, number)
    damage.apply(run / name)
    fit_name(run / name)
    before = hash_contents(run)
    result = invoke(whole.make_arguments(verb, run), whole.image)
    what = f"{verb}, {name}, damage {number}: {damage.description}: {result.err[-2000:]}"
    if result.code not in {0, 1, 2} or "Traceback" in result.err:
        return f"code {result.code}: {what}"
    if result.code != 2:
        return None
    if verb in LIGHT and hash_contents(run) != before:
        return f"files of the run have changed: {what}"
    text = "".join(result.err.split())
    named = any(split in text for split in name.parts) or (verb in HEAVY and str(run) in text)
    return None if named else f"the message names no file: {what}"


def find_faults(
    verb: str, names: list[Path], whole: WholeRun, folder: Path, invoke: Invoke, *, first: int = 0, rounds: int = 1
) -> str:
    """Return all problems after damaging each of these files `rounds` times, with damage numbers from `first` on."""
    numbered = ((first + 1000 * turn + i, name) for turn in range(rounds) for i, name in enumerate(names))
    faults = (check(verb, name, number, whole, folder, invoke) for number, name in numbered)
    return "\n".join(filter(None, faults))
