"""Candidates on disk: one folder each, its record written last, so that a search that was killed goes on.

<out>/search.json               what is searched: another model or other settings need another folder
<out>/teacher.npy               the large model's answers, for distillation
<out>/candidates/<name>/        record.json, bundle/, and model.keras where its weights are its own
<out>/best/                     the bundle that was chosen, and its model.keras
<out>/judgements.json           what the test part said of those that were chosen
<out>/front.json, front.png     every candidate, and which of them no other beats
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
    """One model of the search and what was measured of it.

    `accuracy` is on the validation part, `count` pictures, of which it lost and won `lost` and `won` against the large
    model; `bytes` of its ONNX file; `latency` and `latency_p99` in
    milliseconds at batch 1, `throughput` in pictures a second at batch 32, in ONNX Runtime. `parent` is the candidate
    whose weights it has or started from, `lineage` the steps that lead to it. `failed` says why there is no model.
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
        """Open or make it; raises `OutputError` where it holds something else than the search that `key` describes."""
        files.refuse_links_in_run(path)
        self.path = path
        file = path / "search.json"
        if file.is_file():
            known = _read(file)
            if differing := sorted(k for k in {*known, *key} if known.get(k) != key.get(k)):
                raise OutputError(
                    f"{path} holds a search with another {differing[0]} ({known.get(differing[0])!r}, now "
                    f"{key.get(differing[0])!r}): name another folder with --out."
                )
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OutputError(f"{path} exists already and holds no search: name another folder with --out.")
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
        found = _build(Candidate, _read(file), file, "Remove its folder, and it is made anew.")
        if found.name != name:
            raise ModelError(f"{file} is that of {found.name!r}. Remove its folder, and it is made anew.")
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
        """Return what the test part has said of candidates so far, by name."""
        file = self.path / "judgements.json"
        if not file.is_file():
            return {}
        return _build(dict[str, Judgement], _read(file), file, "Remove it, and the test part is asked again.")

    def keep_judgements(self, found: Mapping[str, Judgement]) -> None:
        """Keep what `judgements` returns."""
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
    """Return the names of those that no other beats in everything: accuracy, size, weights, arithmetic and latency."""
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
        raise ModelError(f"{error} Remove it, and it is made anew.") from error


def _build(kind: type[T], values: Any, file: Path, advice: str) -> T:
    try:
        return jsonio.build(kind, values, str(file))
    except ModelError as error:
        raise ModelError(f"{error} {advice}") from error


def _json(value: Any) -> bytes:
    return (jsonio.dumps(value, indent=1) + "\n").encode()
