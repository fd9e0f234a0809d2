"""The directory of a search: one folder per candidate, its record written last, so that a search can be resumed.

<out>/search.json               the search: another model or other settings need another folder
<out>/teacher.npy               the large model's logits, for distillation
<out>/candidates/<name>/        record.json, bundle/, and model.keras if it has weights of its own
<out>/best/                     the bundle that was chosen; best.keras beside it is its Keras model
<out>/judgements.json           the test comparisons of those that were chosen
<out>/front.json, front.png     every candidate, and which are on the Pareto front
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from sightline import files, jsonio
from sightline.compression.judge import Judgement
from sightline.errors import ModelError, OutputError
from sightline.prediction import bundle
from sightline.prediction.bundle import Bundle

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model of the search and its measurements.

    `accuracy` is on the `count` images of the validation split; of these, only the large model classifies `lost`
    correctly and only this one `won`. `bytes` is the size of its ONNX file. `latency` and `latency_p99` are in
    milliseconds at batch 1, `throughput` in images per second at batch 32, in ONNX Runtime. `parent` is the candidate
    whose weights it started from, `lineage` the steps so far. `failed` says why there is no model.
    """

    name: str
    parent: str | None
    precision: str
    lineage: tuple[Mapping[str, Any], ...]
    accuracy: float = 0.0
    count: int = 0
    lost: int = 0
    won: int = 0
    parameters: int = 0
    bytes: int = 0
    multiply_adds: int = 0
    latency: float = 0.0
    latency_p99: float = 0.0
    throughput: float = 0.0
    seconds: float = 0.0
    failed: str = ""


class Store:
    """The folder of a search."""

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        """Open or create it; raises `OutputError` if it holds anything but the search that `key` describes."""
        files.refuse_links_in_run(path)
        self.path = path
        file = path / "search.json"
        if file.is_file():
            known = _read(file)
            if differing := sorted(k for k in {*known, *key} if known.get(k) != key.get(k)):
                raise OutputError(
                    f"{path} holds a search with another {differing[0]} ({known.get(differing[0])!r}, now "
                    f"{key.get(differing[0])!r}): choose another folder with --out."
                )
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OutputError(f"{path} already exists and holds no search: choose another folder with --out.")
        else:
            files.write(file, _json(key))

    def folder(self, name: str) -> Path:
        """Return the folder of a candidate."""
        return self.path / "candidates" / name

    def get(self, name: str) -> Candidate | None:
        """Return a candidate that was finished, None if it was not."""
        file = self.folder(name) / "record.json"
        if not file.is_file():
            return None
        found = _build(Candidate, _read(file), file, "Remove its folder to create it again.")
        if found.name != name:
            raise ModelError(f"{file} is that of {found.name!r}. Remove its folder to create it again.")
        return found

    def put(self, found: Candidate, made: Bundle | None, save: Callable[[Path], Any] | None = None) -> None:
        """Keep a candidate; `save` writes its Keras model."""
        folder = self.folder(found.name)
        files.refuse_links(self.path, folder)
        if made is not None:
            bundle.write(made, folder / "bundle")
        if save is not None:
            files.write(folder / "model.keras", save)
        files.write(folder / "record.json", _json(asdict(found)))

    def judgements(self) -> dict[str, Judgement]:
        """Return the test comparisons of candidates so far, by name."""
        file = self.path / "judgements.json"
        if not file.is_file():
            return {}
        return _build(dict[str, Judgement], _read(file), file, "Remove it to evaluate on the test split again.")

    def keep_judgements(self, found: Mapping[str, Judgement]) -> None:
        """Save what `judgements` returns."""
        files.write(self.path / "judgements.json", _json({name: asdict(value) for name, value in found.items()}))

    def choose(self, found: Candidate, weights: str) -> Path:
        """Copy a candidate to ``best``, with the ``model.keras`` of the candidate `weights`; what was there goes.

        Where `weights` has no file of its own, being the large model, there is no ``best.keras``.
        """
        self.choose_none()
        best = self.path / "best"
        aside = files.temporary(best)
        try:
            shutil.copytree(self.folder(found.name) / "bundle", aside)
            aside.rename(best)
            if (model := self.folder(weights) / "model.keras").is_file():
                files.write(self.path / "best.keras", lambda path: shutil.copyfile(model, path))
        except OSError as error:
            raise OutputError(f"{best} cannot be written: {error.strerror or error}. Free some space.") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return best

    def choose_none(self) -> None:
        """Remove what was chosen under another budget."""
        shutil.rmtree(self.path / "best", ignore_errors=True)
        (self.path / "best.keras").unlink(missing_ok=True)


def front(candidates: Iterable[Candidate]) -> tuple[str, ...]:
    """Return the names on the Pareto front of accuracy, file size, latency, parameters and multiply-adds."""
    all_ = [c for c in candidates if not c.failed]

    def worth(c: Candidate) -> tuple[float, ...]:
        return c.accuracy, -c.bytes, -c.latency, -c.parameters, -c.multiply_adds

    def beaten(c: Candidate) -> bool:
        return any(worth(o) != worth(c) and all(a >= b for a, b in zip(worth(o), worth(c), strict=True)) for o in all_)

    return tuple(c.name for c in all_ if not beaten(c))


def _read(file: Path) -> dict[str, Any]:
    try:
        return jsonio.read(file)
    except ModelError as error:
        raise ModelError(f"{error} Remove it to create it again.") from error


def _build(kind: type[T], values: Any, file: Path, advice: str) -> T:
    try:
        return jsonio.build(kind, values, str(file))
    except ModelError as error:
        raise ModelError(f"{error} {advice}") from error


def _json(value: Any) -> bytes:
    return (jsonio.dumps(value, indent=1) + "\n").encode()
