"""The directory of a search: one folder per candidate, its record written last, so that a search can be resumed.

<out>/search.json               the search: another model or other settings need another folder
<out>/teacher.npy               the original model's logits, for distillation
<out>/candidates/<name>/        record.json, bundle/, and model.keras if it has weights of its own
<out>/best/                     the bundle that was chosen; best.keras beside it is its Keras model
<out>/comparisons.json          the test comparisons of those that were chosen
<out>/pareto_front.json, .png   every candidate, and which are on the Pareto front
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sightline import _io, jsonio
from sightline.compress.noninferiority import PairedTest
from sightline.errors import ModelError, OutputError
from sightline.inference import bundle
from sightline.inference.bundle import Bundle

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CompressionCandidate:
    """One model of the search and its measurements.

    `accuracy` is on the `count` images of the validation split; of these, only the original model classifies
    `only_original_correct` correctly and only this one `only_this_correct`. `bytes` is the size of its ONNX file.
    `latency` and `latency_p99` are in milliseconds at batch 1, `throughput` in images per second at batch 32, in ONNX
    Runtime. `parent` is the candidate whose weights it started from, `lineage` the steps so far. `failed` says why
    there is no model.
    """

    name: str
    parent: str | None
    precision: str
    lineage: tuple[Mapping[str, Any], ...]
    accuracy: float = 0.0
    count: int = 0
    only_original_correct: int = 0
    only_this_correct: int = 0
    parameters: int = 0
    bytes: int = 0
    multiply_adds: int = 0
    latency: float = 0.0
    latency_p99: float = 0.0
    throughput: float = 0.0
    seconds: float = 0.0
    failed: str = ""


class SearchDir:
    """The folder of a search."""

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        """Open or create it; raises `OutputError` if it holds anything but the search that `key` describes."""
        _io.refuse_links_in_run(path)
        self.path = path
        file = path / "search.json"
        if file.is_file():
            known = _read_json(file)
            if differing := sorted(k for k in {*known, *key} if known.get(k) != key.get(k)):
                raise OutputError(
                    f"{path} holds a search with another {differing[0]} ({known.get(differing[0])!r}, now "
                    f"{key.get(differing[0])!r}): choose another folder with --out."
                )
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OutputError(f"{path} already exists and holds no search: choose another folder with --out.")
        else:
            _io.write_atomic(file, _to_json(key))

    def folder(self, name: str) -> Path:
        """Return the folder of a candidate."""
        return self.path / "candidates" / name

    def read_candidate(self, name: str) -> CompressionCandidate | None:
        """Return a candidate that was finished, None if it was not."""
        file = self.folder(name) / "record.json"
        if not file.is_file():
            return None
        candidate = _build(CompressionCandidate, _read_json(file), file, "Remove its folder to create it again.")
        if candidate.name != name:
            raise ModelError(f"{file} is that of {candidate.name!r}. Remove its folder to create it again.")
        return candidate

    def write_candidate(
        self, candidate: CompressionCandidate, packed: Bundle | None, save: Callable[[Path], Any] | None = None
    ) -> None:
        """Keep a candidate; `save` writes its Keras model."""
        folder = self.folder(candidate.name)
        _io.refuse_links(self.path, folder)
        if packed is not None:
            bundle.write_folder(packed, folder / "bundle")
        if save is not None:
            _io.write_atomic(folder / "model.keras", save)
        _io.write_atomic(folder / "record.json", _to_json(jsonio.fields_to_dict(candidate)))

    def read_comparisons(self) -> dict[str, PairedTest]:
        """Return the test comparisons of candidates so far, by name."""
        file = self.path / "comparisons.json"
        if not file.is_file():
            return {}
        return _build(dict[str, PairedTest], _read_json(file), file, "Remove it to evaluate on the test split again.")

    def write_comparisons(self, comparisons: Mapping[str, PairedTest]) -> None:
        """Save what `read_comparisons` returns."""
        _io.write_atomic(
            self.path / "comparisons.json",
            _to_json({name: jsonio.fields_to_dict(value) for name, value in comparisons.items()}),
        )

    def select_best(self, candidate: CompressionCandidate, weights: str) -> Path:
        """Copy a candidate to ``best``, with the ``model.keras`` of the candidate `weights`; what was there goes.

        Where `weights` has no file of its own, being the original model, there is no ``best.keras``.
        """
        self.clear_best()
        best = self.path / "best"
        aside = _io.temporary_path(best)
        try:
            shutil.copytree(self.folder(candidate.name) / "bundle", aside)
            aside.rename(best)
            if (model := self.folder(weights) / "model.keras").is_file():
                _io.write_atomic(self.path / "best.keras", lambda path: shutil.copyfile(model, path))
        except OSError as error:
            raise OutputError(f"{best} cannot be written: {error.strerror or error}. Free some space.") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return best

    def clear_best(self) -> None:
        """Remove what was chosen under another budget."""
        _io.remove_folder(self.path / "best")
        (self.path / "best.keras").unlink(missing_ok=True)


def pareto_front(candidates: Iterable[CompressionCandidate]) -> tuple[str, ...]:
    """Return the names on the Pareto front of accuracy, file size, latency, parameters and multiply-adds."""
    all_ = [c for c in candidates if not c.failed]

    def objectives(c: CompressionCandidate) -> tuple[float, ...]:
        return c.accuracy, -c.bytes, -c.latency, -c.parameters, -c.multiply_adds

    def dominated(c: CompressionCandidate) -> bool:
        return any(
            objectives(o) != objectives(c) and all(a >= b for a, b in zip(objectives(o), objectives(c), strict=True))
            for o in all_
        )

    return tuple(c.name for c in all_ if not dominated(c))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return jsonio.read_object(file)
    except ModelError as error:
        raise ModelError(f"{error} Remove it to create it again.") from error


def _build(kind: type[T], values: Any, file: Path, advice: str) -> T:
    try:
        return jsonio.build(kind, values, str(file))
    except ModelError as error:
        raise ModelError(f"{error} {advice}") from error


def _to_json(value: Any) -> bytes:
    return (jsonio.dumps(value, indent=1) + "\n").encode()
