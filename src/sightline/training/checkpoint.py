"""Checkpoints: arrays and a JSON state, never pickled; hashed, and written atomically."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend, files, jsonio
from sightline.errors import ModelError, OutputError

Arrays = dict[str, NDArray[Any]]
_NO_NUMBERS = "USOcMm"  # dtype kinds; V is allowed because bfloat16 has it


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A snapshot of training: `arrays` holds weights and optimizer state by name, `state` the rest as JSON values."""

    arrays: Arrays
    state: dict[str, Any]


def variables(model: Any, part: Any = None) -> Arrays:
    """Return a copy of each variable of a Keras model, or only of those that `part`, a submodel, contains.

    Names are unique and the same in every process. Paths are not: Keras numbers the seeds of random layers across all
    models of a process.
    """
    to_numpy = backend.keras().ops.convert_to_numpy
    wanted = None if part is None else {id(v) for v in part.variables}
    return {
        f"{i:04d}:{v.name}": np.array(to_numpy(v))
        for i, v in enumerate(model.variables)
        if wanted is None or id(v) in wanted
    }


def restore(model: Any, arrays: Arrays) -> None:
    """Set each variable of `model` from the `variables` of an identical model; raises `ModelError` on a mismatch."""
    for i, variable in enumerate(model.variables):
        name = f"{i:04d}:{variable.name}"
        if name not in arrays or arrays[name].shape != tuple(variable.shape) or arrays[name].dtype.kind in _NO_NUMBERS:
            raise ModelError(f"The checkpoint does not fit the model: it has no {name} of shape {variable.shape}.")
        backend.assign(variable, arrays[name])


def write(folder: Path, number: int, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write checkpoint `number`, then remove all but the newest `keep`; the file name contains the content's hash.

    Existing checkpoints numbered `number` or higher are from steps that were repeated, and are removed too. Raises
    `OutputError` if the disk is full or not writable; earlier checkpoints are not touched.
    """
    files.refuse_links(folder.parent, folder)
    aside = files.temporary(folder / f"{number:05d}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with files.create(aside) as file:
            np.savez(
                file,
                allow_pickle=False,
                state=np.array(jsonio.dumps(checkpoint.state, ensure_ascii=True)),
                **checkpoint.arrays,
            )
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        path = folder / f"{number:05d}-{digest[:16]}.npz"
        aside.replace(path)
        files.sync(folder)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(
            f"The checkpoint {folder / f'{number:05d}'} cannot be written: {reason}. "
            "Free some space; the previous checkpoint is intact."
        ) from error
    finally:
        with suppress(OSError):  # already renamed, unless writing failed
            aside.unlink()
    before = [old for old in _newest_first(folder) if _number(old) < number]
    kept = {path, *before[: keep - 1]}
    for old in {*folder.glob("*.npz"), *folder.glob(".part-*")} - kept:
        old.unlink(missing_ok=True)
    return path


def latest(
    folder: Path,
    say: Callable[[str], None] | None = None,
    check: Callable[[Checkpoint, str], object] | None = None,
) -> Checkpoint | None:
    """Return the newest intact checkpoint; None if there is none.

    `check` is called with a checkpoint and its description, and raises `ModelError` if its state is invalid. `say`
    receives a message for each newer checkpoint that was skipped.
    """
    paths = _newest_first(folder)
    for path in paths:
        try:
            saved = read(path)
            if check is not None:
                check(saved, f"The checkpoint {path}")
        except ModelError as error:
            if say is not None:
                say(f"{error} " + ("There is no earlier one." if path == paths[-1] else "Using the previous one."))
        else:
            return saved
    return None


def keep_newest(folder: Path) -> int:
    """Remove all but the newest checkpoint of a finished run; return its size in bytes."""
    files.refuse_links(folder.parent, folder)
    paths = _newest_first(folder)
    for old in [*paths[1:], *folder.glob(".part-*")]:
        old.unlink(missing_ok=True)
    return paths[0].stat().st_size if paths else 0


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-*.npz"), key=_number, reverse=True)


def _number(path: Path) -> int:
    head = path.name.partition("-")[0]
    return int(head) if head.isdecimal() else -1


def read(path: Path) -> Checkpoint:
    """Read one checkpoint; raises `ModelError` if it is damaged."""
    try:
        with files.open_regular(path) as file:
            if not path.stem.endswith(hashlib.file_digest(file, "sha256").hexdigest()[:16]):
                raise ModelError(f"The checkpoint {path} is damaged: its content does not match its hash.")
            file.seek(0)
            arrays = files.load_arrays(file)
        state = jsonio.loads(str(arrays.pop("state", "")))
    except (OSError, ValueError) as error:
        raise ModelError(f"The checkpoint {path} cannot be read: {error}.") from error
    if not isinstance(state, dict):
        raise ModelError(f"The checkpoint {path} cannot be read: its state is not a JSON object.")
    return Checkpoint(arrays, state)
