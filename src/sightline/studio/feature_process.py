"""Compute pretrained features in a separate process, whose memory (frameworks, decoded images) is freed when it exits.

The process has the import path of this one, reads the request from a folder, writes the arrays there, and reports its
progress in lines of JSON.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sightline import jsonio
from sightline.api.dataset import Dataset
from sightline.api.pretrained_features import compute_projected_features
from sightline.callbacks import Callback, Progress
from sightline.data.file_records import FileRecords
from sightline.data.indexing import build_index
from sightline.data.targets import CLASS_TARGETS, LABEL_SETS
from sightline.data.types import Index
from sightline.errors import ProcessError, SightlineError
from sightline.studio.background import ProgressCallback

REQUEST, FEATURES, DECODED, SYS_PATH = "request.json", "features.npy", "decoded.npy", "sys-path.json"
CHILD_CODE = (
    f"import json, sys; sys.path[:] = json.load(open(sys.argv[1] + '/{SYS_PATH}', encoding='utf-8')); from "
    "sightline.studio.feature_process import main; main()"
)


def compute_in_process(
    sources: Sequence[str], settings: Sequence[str], index: Index, callback: Callback
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the result of `compute_projected_features` for the images of an index, which was built from these sources.

    The features are mapped from an unlinked file, so that they take memory only while they are read. An exception from
    the callback ends the process.

    Raises:
        SightlineError: As `compute_projected_features` does, but not with the same class.
        ProcessError: If the process was killed.
    """
    with tempfile.TemporaryDirectory(prefix="sightline-features-") as name:
        folder = Path(name)
        images = [[image.path, image.sha256] for image in index.images]
        request = {"sources": list(sources), "settings": list(settings), "images": images}
        (folder / REQUEST).write_text(jsonio.dumps(request, ensure_ascii=True), encoding="utf-8")
        (folder / SYS_PATH).write_text(jsonio.dumps(sys.path, ensure_ascii=True), encoding="utf-8")
        command = [sys.executable, "-P", "-c", CHILD_CODE, name]  # -P: no module of the current folder
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
            try:
                _follow(process, callback)
            finally:
                process.kill()
        # on other systems, a mapped file cannot be removed
        mode: Literal["r"] | None = "r" if os.name == "posix" else None
        return np.load(folder / FEATURES, mode), np.load(folder / DECODED)


def list_images(data: Dataset, progress: Progress, records: FileRecords | None = None) -> Index:
    """Return the images of a data set, including those still to be labeled."""
    task = data.config.model.task
    targets = LABEL_SETS if task == "multi_label" else CLASS_TARGETS
    index = build_index(
        data.sources, progress, options=data.config.data, lenient=True, unlabeled=True, targets=targets,
        records=records,
    )  # fmt: skip
    if targets.allows_several and not index.several_labels:
        return replace(index, several_labels=f"model.task is {task}")
    return index


def _follow(process: subprocess.Popen[str], callback: Callback) -> None:
    """Report the progress of the process until it ends."""
    assert process.stdout is not None
    for line in process.stdout:
        if not line.startswith("{"):
            continue  # printed by a library
        event = jsonio.loads(line)
        if "error" in event:
            raise SightlineError(event["error"])
        callback.on_progress(event["task"], event["done"], event["total"])
    if code := process.wait():
        raise ProcessError(f"The process that computes the features ended with code {code}: see the terminal.")


def _send(event: dict[str, object]) -> None:
    sys.stdout.write(jsonio.dumps(event, ensure_ascii=True) + "\n")
    sys.stdout.flush()


def _report(task: str, done: int, total: int) -> None:
    _send({"task": task, "done": done, "total": total})


def _answer(folder: Path) -> None:
    """Compute the requested features."""
    request = jsonio.loads((folder / REQUEST).read_text(encoding="utf-8"))
    data = Dataset(request["sources"], set=request["settings"])
    index = list_images(data, _report)
    position_of = {(path, sha256): i for i, (path, sha256) in enumerate(request["images"])}
    present = [i for i, image in enumerate(index.images) if (image.path, image.sha256) in position_of]
    rows = [position_of[index.images[i].path, index.images[i].sha256] for i in present]
    computed, are_decoded = compute_projected_features(
        index.select(present), tuple(data.settings), ProgressCallback(_report)
    )
    decoded = np.zeros(len(position_of), bool)
    decoded[rows] = are_decoded
    if rows != list(range(len(position_of))):
        features = np.full((len(position_of), computed.shape[1]), np.nan, np.float32)
        features[rows] = computed
        computed = features
    np.save(folder / FEATURES, computed)
    np.save(folder / DECODED, decoded)


def main() -> None:
    """Answer the request in the folder named on the command line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the studio handles Ctrl-C and ends this process
    try:
        _answer(Path(sys.argv[1]))
    except (SightlineError, OSError) as error:
        _send({"error": str(error)})
