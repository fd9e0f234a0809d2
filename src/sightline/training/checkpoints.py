"""Checkpoints: arrays and a JSON state, never pickled; hashed, and written atomically."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import _io, _packed, backend, jsonio
from sightline.errors import ModelError, OutputError

Arrays = dict[str, NDArray[Any]]
MAX_BYTES = 32 << 30  # limit on a checkpoint: enough for a network of a billion weights
_NON_NUMERIC_KINDS = "USOcMm"  # dtype kinds; V is allowed because it is bfloat16's


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A snapshot of training: `arrays` are weights and optimizer state by name, `state` is the rest as JSON values.

    The arrays may be `VariableArrays`, whose values are read at the time of access.
    """

    arrays: Mapping[str, NDArray[Any]]
    state: dict[str, Any]


class VariableArrays(Mapping[str, NDArray[Any]]):
    """Keras variables and arrays by name; variables are copied only on lookup, as all copies may not fit in memory."""

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self._variables = variables

    def __getitem__(self, name: str) -> NDArray[Any]:
        value = self._variables[name]
        return value if isinstance(value, np.ndarray) else np.array(backend.keras().ops.convert_to_numpy(value))

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)


def name_variables(model: Any) -> dict[str, Any]:
    """Return the variables of a Keras model or optimizer by name.

    Names are unique and the same in every process. Paths are not: Keras numbers the seeds of random layers across all
    models of a process.
    """
    return {f"{i:04d}:{variable.name}": variable for i, variable in enumerate(model.variables)}


def copy_variables(model: Any, submodel: Any = None, *, outside: bool = False) -> Arrays:
    """Return a copy of each variable of a Keras model, by its name in `name_variables`.

    With a `submodel`, only the variables inside it are copied, or with `outside` only the others.
    """
    variables = name_variables(model)
    if submodel is not None:
        inside = {id(variable) for variable in submodel.variables}
        variables = {name: v for name, v in variables.items() if (id(v) in inside) is not outside}
    return dict(VariableArrays(variables))


def restore_variables(model: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Set each variable of `model` from the result of `copy_variables` for an identical model.

    Raises `ModelError` on a mismatch.
    """
    for name, variable in name_variables(model).items():
        if (
            name not in arrays
            or arrays[name].shape != tuple(variable.shape)
            or arrays[name].dtype.kind in _NON_NUMERIC_KINDS
        ):
            raise ModelError(f"The checkpoint does not fit the model: it has no {name} of shape {variable.shape}.")
        backend.assign(variable, arrays[name])


def write_checkpoint(folder: Path, number: int, checkpoint: Checkpoint, max_checkpoints: int = 2) -> Path:
    """Write checkpoint `number`, then remove all but the newest `max_checkpoints`.

    The file name contains a hash of the content.

    Existing checkpoints numbered `number` or higher are from steps that were repeated, and are removed too. Raises
    `OutputError` if the disk is full or not writable; earlier checkpoints are left unchanged.
    """
    _io.refuse_links(folder.parent, folder)
    temporary_path = _io.temporary_path(folder / f"{number:05d}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _io.create_exclusive(temporary_path) as file:
            _write_arrays(file, checkpoint)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        path = folder / f"{number:05d}-{digest[:16]}.npz"
        temporary_path.replace(path)
        _io.sync_folder(folder)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(
            f"The checkpoint {folder / f'{number:05d}'} cannot be written: {reason}. Free some space"
            f"{'; the previous checkpoint is intact' if _list_newest_first(folder) else ''}."
        ) from error
    finally:
        with suppress(OSError):  # exists only if writing failed
            temporary_path.unlink()
    older = [path_to_remove for path_to_remove in _list_newest_first(folder) if _parse_number(path_to_remove) < number]
    kept_paths = {path, *older[: max_checkpoints - 1]}
    for old in {*folder.glob("*.npz"), *folder.glob(".part-*")} - kept_paths:
        _io.remove(old)
    return path


def _write_arrays(file: Any, checkpoint: Checkpoint) -> None:
    """Write the same as ``np.savez``, but with only one array in memory at a time."""
    with zipfile.ZipFile(file, "w") as archive:
        state = np.array(jsonio.dumps(checkpoint.state, ensure_ascii=True))
        for name in ("state", *checkpoint.arrays):
            array = checkpoint.arrays[name] if name != "state" else state
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def load_latest(
    folder: Path,
    on_message: Callable[[str], None] = lambda _: None,
    check: Callable[[Checkpoint, str], object] | None = None,
) -> Checkpoint | None:
    """Return the newest intact checkpoint; None if there is none.

    `check` is called with a checkpoint and its description, and raises `ModelError` if its state is invalid.
    `on_message` receives a message for each newer checkpoint that was skipped.
    """
    paths = _list_newest_first(folder)
    for path in paths:
        try:
            candidate = read_checkpoint(path)
            if check is not None:
                check(candidate, f"The checkpoint {path}")
        except ModelError as error:
            on_message(f"{error} {'There is no earlier one.' if path == paths[-1] else 'Using the previous one.'}")
        else:
            return candidate
    return None


def prune_checkpoints(folder: Path) -> int:
    """Remove all but the newest checkpoint of a finished run; return the size of that one in bytes."""
    _io.refuse_links(folder.parent, folder)
    paths = _list_newest_first(folder)
    for path_to_remove in [*paths[1:], *folder.glob(".part-*")]:
        _io.remove(path_to_remove)
    return paths[0].stat().st_size if paths else 0


def _list_newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-*.npz"), key=_parse_number, reverse=True)


def _parse_number(path: Path) -> int:
    head = path.name.partition("-")[0]
    return int(head) if head.isdecimal() else -1


def read_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint; raises `ModelError` if it is damaged or has more than `MAX_BYTES` bytes."""
    try:
        with _io.open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
                raise ModelError(
                    f"The checkpoint {path} cannot be read: it has {size:,} bytes, expected at most {MAX_BYTES:,}."
                )
            if not path.stem.endswith(hashlib.file_digest(file, "sha256").hexdigest()[:16]):
                raise ModelError(f"The checkpoint {path} is damaged: its content does not match its hash.")
            file.seek(0)
            arrays = _packed.load_arrays(file)
        state = jsonio.loads(str(arrays.pop("state", "")))
    except (OSError, ValueError) as error:
        raise ModelError(f"The checkpoint {path} cannot be read: {error}.") from error
    if not isinstance(state, dict):
        raise ModelError(f"The checkpoint {path} cannot be read: its state is not a JSON object.")
    return Checkpoint(arrays, state)
