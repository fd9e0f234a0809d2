"""Run commands in subprocesses, and kill them when a file appears or after a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Moment = Callable[["RunPaths", float], bool]
"""Returns whether to kill now, given the seconds since the start; called every millisecond."""

PINNED = "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
MAIN = "from sightline.cli import main; main()"


@dataclass(frozen=True)
class RunPaths:
    """The paths of a run and its cache."""

    run: Path
    cache: Path

    def has(self, pattern: str) -> bool:
        return any(self.run.glob(pattern))

    def epochs(self) -> int:
        try:
            return (self.run / "history.jsonl").read_bytes().count(b"\n")
        except OSError:
            return 0

    def is_caching(self) -> bool:
        return any(self.cache.glob("*.part-*/pixels.npy"))


MOMENTS: dict[str, Moment] = {
    "indexing": lambda place, _: place.has("run.json"),
    "deciding": lambda place, _: place.has("config.toml"),
    "caching": lambda place, _: place.is_caching(),
    "features": lambda place, _: place.has("data.jsonl"),
    "first epoch": lambda place, _: place.has("tensorboard/*"),
    "second epoch": lambda place, _: place.epochs() >= 1,
    "writing a checkpoint": lambda place, _: place.has("checkpoints/.part-*"),
    "later": lambda place, _: place.epochs() >= 3,
    "evaluation": lambda place, _: place.has("model.keras"),
    "conclusion": lambda place, _: place.has("figures/confusion.png"),
}


def after(seconds: float) -> Moment:
    return lambda _, passed: passed >= seconds


@dataclass(frozen=True)
class Outcome:
    """The outcome of a process: whether it was `killed`, and how many `seconds` it then took to end."""

    killed: bool
    code: int
    out: str
    err: str
    seconds: float


def run_and_kill(
    place: RunPaths,
    arguments: Sequence[object],
    moment: Moment | None = None,
    *,
    number: signal.Signals = signal.SIGKILL,
    pinned: bool = False,
    before: str = "",
) -> Outcome:
    """Run ``sightline ARGUMENTS...``, and send it a signal at a given moment if it is still running."""
    code = (PINNED if pinned else "") + before + MAIN
    environment = os.environ | {"SIGHTLINE_CACHE": str(place.cache), "TQDM_DISABLE": "1"}
    killed, at = False, 0.0
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        begun = time.monotonic()
        while moment is not None and process.poll() is None:
            if moment(place, time.monotonic() - begun):
                process.send_signal(number)
                killed, at = True, time.monotonic()
                break
            time.sleep(0.001)
        out, err = process.communicate(timeout=300)
        ended = time.monotonic()
    return Outcome(killed, process.returncode, out, err, ended - at if killed else 0.0)


def read_weights_hash(ended: Outcome) -> str:
    assert ended.code == 0, ended.err
    return str(json.loads(ended.out)["weights_sha256"])


def read_history(place: RunPaths) -> list[tuple[object, ...]]:
    """Return the rows of the history, without the timings, which may differ."""
    rows = [json.loads(line) for line in (place.run / "history.jsonl").read_text().splitlines()]
    free = {"seconds", "images_per_second"}
    return [tuple(value for key, value in row.items() if key not in free) for row in rows]
