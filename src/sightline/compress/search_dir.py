"""The directory of a search: one folder per candidate, with the record written last, so that searches can be resumed.

<out>/search.json               the search; another model or other settings need another folder
<out>/teacher.npy               the original model's logits, for distillation
<out>/candidates/<name>/        record.json, bundle/, and model.keras if it has its own weights;
                                training/ has checkpoints until the candidate is complete
<out>/best/                     the chosen bundle; best.keras next to it is its Keras model
<out>/lock                      locked by the searching process
<out>/comparisons.json          the test comparisons of the chosen candidates
<out>/pareto_front.json, .png   all candidates, and which of them are on the Pareto front

The folder may be untrusted: nothing is written through links in it, and everything that is read is checked.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sightline import _io, _locks, jsonio
from sightline.compress.noninferiority import Comparison, PairedTest, ScoreTest, compare_counts
from sightline.data.types import SPLITS
from sightline.errors import ModelError, OutputError
from sightline.escaping import printable
from sightline.inference import bundle
from sightline.inference.bundle import Bundle
from sightline.models.keras_file import check_keras_file

T = TypeVar("T")
MAX_VALUE = 1e15  # limit on any measurement in a record


@dataclass(frozen=True, slots=True)
class CompressionCandidate:
    """A model of the search and its measurements.

    `accuracy` is on the `count` images of the validation split; `only_original_correct` of these are classified
    correctly only by the original model, and `only_this_correct` only by this one. If images have scores or groups,
    `scores` compares them instead of these counts, and `metrics` are the task's headline metrics by name. `bytes` is
    the size of the ONNX file. `latency` and `latency_p99` are in milliseconds at batch size 1, `throughput` in images
    per second at batch size 32, in ONNX Runtime. `parent` is the candidate whose weights it started from, `lineage` the
    steps so far. `failed` is the reason if there is no model.
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
    metrics: Mapping[str, float] = field(default_factory=dict)
    scores: ScoreTest | None = None

    @property
    def comparison(self) -> Comparison:
        """The original model against this one on the validation split."""
        if self.scores is not None:
            return self.scores
        correct = round(self.accuracy * self.count) + self.only_original_correct - self.only_this_correct
        return compare_counts("validation", self.count, correct, self.only_original_correct, self.only_this_correct)

    @property
    def headline(self) -> tuple[str, float]:
        """The name and value of the task's first headline metric."""
        return next(iter(self.metrics.items()), ("accuracy", self.accuracy))

    @property
    def shown_metrics(self) -> dict[str, float]:
        """The headline, and the mean score that is compared with the original model's, by name."""
        scores = {} if self.scores is None else {self.scores.metric: self.scores.compressed_score}
        return dict([self.headline]) | scores

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, with counts or scores depending on the task."""
        if self.scores is None:
            return jsonio.fields_to_dict(self, skip=("metrics", "scores"))
        values = jsonio.fields_to_dict(self, skip=("only_original_correct", "only_this_correct", "scores"))
        return values | {"scores": jsonio.fields_to_dict(self.scores)}


def _describe_difference(name: str, known: object, new: object) -> str:
    """Describe an existing search by how it differs from the new one."""
    if name == "weights_sha256":
        return "of another model"
    if name in {"content", "data", "images"}:
        return "with other images"
    if name == "max_drop":
        known, new = (f"{100 * v:g} points" if isinstance(v, int | float) else v for v in (known, new))
    return f"with {printable(name[:40]).replace('_', ' ')} {_describe_value(known)}, not {_describe_value(new)}"


def _describe_value(value: object) -> str:
    """Return a value from a search's file, which may be untrusted, as text."""
    if isinstance(value, dict):
        value = [f"{name} {entry}" for name, entry in value.items()]
    return printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))[:80] or "none"


class SearchDir:
    """The folder of a search."""

    def __init__(self, path: Path, key: Mapping[str, Any], num_images: int) -> None:
        """Open or create the folder; raises `OutputError` if it contains anything but the search described by `key`.

        `num_images` is the number of images in all splits, the upper limit of all counts in its files.
        """
        self.check_place(path)
        self.path, self._num_images, self._metric = path, num_images, key.get("score", "accuracy")
        file = path / "search.json"
        self._refuse_foreign_files()
        if file.is_file():
            known = _read_json(file)
            if differing := sorted(k for k in {*known, *key} if known.get(k) != key.get(k)):
                name = differing[0]
                raise OutputError(
                    f"{path} holds a search {_describe_difference(name, known.get(name), key.get(name))}: search with "
                    "the same options and images, or choose another folder with --out."
                )
        else:
            _io.write_atomic(file, _to_json(key))

    @staticmethod
    def check_place(path: Path) -> None:
        """Raise `OutputError` if no search can be written to `path`, because of other content or a link."""
        _io.refuse_links_in_run(path)
        is_taken = path.exists() and (not path.is_dir() or _io.holds_files(path))
        if is_taken and not (path / "search.json").is_file():
            raise OutputError(f"{path} already exists and holds no search: choose another folder with --out.")
        _io.check_writable(path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the search during the block, after removing files that a killed process left half-written.

        Raises `OutputError` if another process has locked it.
        """
        with _locks.hold_lock(self.path / "lock", f"The search {self.path}"):
            _io.remove_partial_files(self.path)
            yield

    def folder(self, name: str) -> Path:
        """Return the folder of a candidate."""
        return self.path / "candidates" / name

    def training_folder(self, name: str) -> Path:
        """Return the folder for a candidate's checkpoints, which is removed when the candidate is written."""
        folder = self.folder(name) / "training"
        _io.refuse_links(self.path, folder)
        return folder

    def model_file(self, name: str) -> Path | None:
        """Return the unchecked Keras model file of a candidate; None if it has no weights of its own.

        Raises `ModelError` if it is a link.
        """
        file = self.folder(name) / "model.keras"
        if file.is_symlink():
            raise ModelError(f"{file} is a link, which a search never writes. Remove {file.parent}.")
        return file if file.exists() else None

    def read_candidate(
        self, name: str, parent: CompressionCandidate | None, precision: str
    ) -> CompressionCandidate | None:
        """Return a complete candidate created from `parent`; None if there is none.

        Raises `ModelError` if its record is damaged, or belongs to another candidate.
        """
        file = self.folder(name) / "record.json"
        if not file.is_file():
            return None
        candidate = _build(CompressionCandidate, _read_json(file), file, "Remove its folder to create it again.")
        inherited = parent.lineage if parent else ()
        expected = name, parent.name if parent else None, precision, len(inherited) + 1, inherited
        lineage = candidate.lineage
        actual = candidate.name, candidate.parent, candidate.precision, len(lineage), lineage[: len(inherited)]
        metric = "accuracy" if candidate.scores is None else candidate.scores.metric
        is_compared = bool(candidate.failed) or metric == self._metric
        if actual != expected or not is_compared or not _is_plausible(candidate, self._num_images):
            raise ModelError(
                f"{file} is not the record of {name} in this search, or its numbers were changed. "
                "Remove its folder to create it again."
            )
        return candidate

    def write_candidate(
        self, candidate: CompressionCandidate, packed: Bundle | None, save: Callable[[Path], Any] | None = None
    ) -> None:
        """Save a candidate; `save` writes its Keras model."""
        folder = self.folder(candidate.name)
        _io.refuse_links(self.path, folder)
        if packed is not None:
            bundle.write_folder(packed, folder / "bundle")
        if save is not None:
            _io.save_atomic(folder / "model.keras", save)
        _io.write_atomic(folder / "record.json", _to_json(candidate.to_dict()))
        _io.remove(folder / "training")

    def read_comparisons(self) -> dict[str, Comparison]:
        """Return the test comparisons of candidates so far, by name."""
        file = self.path / "comparisons.json"
        if not file.is_file():
            return {}
        advice = "Remove it to evaluate on the test split again."
        comparisons = _build(dict[str, Comparison], _read_json(file), file, advice)
        for name, comparison in comparisons.items():
            if comparison.metric != self._metric or not _is_consistent(comparison, self._num_images):
                raise ModelError(f"The numbers of {name[:40]!r} in {file} contradict each other. {advice}")
        return comparisons

    def write_comparisons(self, comparisons: Mapping[str, Comparison]) -> None:
        """Save the test comparisons, for `read_comparisons`."""
        _io.write_atomic(
            self.path / "comparisons.json",
            _to_json({name: jsonio.fields_to_dict(value) for name, value in comparisons.items()}),
        )

    def select_best(self, candidate: CompressionCandidate, weights: str) -> Path:
        """Copy the bundle of a candidate to ``best``, and the Keras model of the candidate `weights` to ``best.keras``.

        If `weights` has no Keras model of its own, being the original, there is no ``best.keras``.
        """
        best, former = self.path / "best", None
        with suppress(ModelError):
            former = bundle.read(best)
        self.clear_best()
        chosen = bundle.read(self.folder(candidate.name) / "bundle")
        if former and replace(former.manifest, thresholds=chosen.manifest.thresholds) == chosen.manifest:
            chosen = former  # includes thresholds and a card that were added to it later
        bundle.write_folder(chosen, best)
        if (model := self.model_file(weights)) is not None:
            check_keras_file(model)
            with _io.open_regular(model) as file:
                _io.write_atomic(self.path / "best.keras", partial(shutil.copyfileobj, file))
        return best

    def _refuse_foreign_files(self) -> None:
        """Raise `OutputError` if ``best`` contains files other than a bundle's, which would be lost."""
        best = self.path / "best"
        if best.is_dir() and not best.is_symlink():
            names = [path.relative_to(best).as_posix() for path in best.rglob("*")]
            own = [name for name in names if name == bundle.MANIFEST_FILE or bundle.is_bundle_file(name)]
            bundle.refuse_foreign_files(best, own)

    def clear_best(self) -> None:
        """Remove the choice made under another budget; raises `OutputError` if something else has its name."""
        self._refuse_foreign_files()
        best, model = self.path / "best", self.path / "best.keras"
        if best.is_symlink() or (best.exists() and not best.is_dir()):
            best.unlink()
        _io.remove(best)
        if model.is_dir() and not model.is_symlink():
            raise OutputError(f"{model} is a folder, which a search never writes: remove it.")
        model.unlink(missing_ok=True)


def _is_plausible(candidate: CompressionCandidate, num_images: int) -> bool:
    """Return whether the measurements of a candidate on at most `num_images` images are possible."""
    if candidate.failed:
        return True
    if not all(0 <= value <= 1 for value in (candidate.accuracy, *candidate.metrics.values())):
        return False
    if candidate.scores is not None and not _is_consistent(candidate.scores, candidate.count):
        return False
    count, lost, gained = candidate.count, candidate.only_original_correct, candidate.only_this_correct
    correct = round(candidate.accuracy * count)
    measured = (
        candidate.parameters, candidate.bytes, candidate.multiply_adds, candidate.latency, candidate.latency_p99,
        candidate.throughput,
    )  # fmt: skip
    return (
        0 < count <= num_images
        and 0 <= gained <= correct <= count - lost <= count
        and all(0 < value <= MAX_VALUE for value in measured)
        and 0 <= candidate.seconds <= MAX_VALUE
    )


def _is_consistent(test: Comparison, num_images: int) -> bool:
    """Return whether all numbers of a comparison on at most `num_images` images are consistent."""
    if isinstance(test, ScoreTest):
        return _is_possible(test, num_images)
    lost, gained = test.only_original_correct, test.only_compressed_correct
    if min(lost, gained) < 0 or not lost + gained <= test.count <= num_images or not test.count:
        return False
    if test.split not in SPLITS or not 0 <= test.original_accuracy <= 1:
        return False
    expected = compare_counts(test.split, test.count, round(test.original_accuracy * test.count), lost, gained)
    return all(math.isclose(a, b, abs_tol=1e-9) for a, b in zip(_numbers(test), _numbers(expected), strict=True))


def _is_possible(test: ScoreTest, num_images: int) -> bool:
    """Return whether scores of at most `num_images` images can have these statistics."""
    fractions = (test.original_score, test.compressed_score, test.p_value, test.standard_error or 0.0)
    low, high = test.difference_interval or (test.difference, test.difference)
    return (
        test.split in SPLITS
        and 0 < test.count <= num_images
        and 0 < (test.groups or 1) <= test.count
        and all(0 <= value <= 1 for value in fractions)
        and -1 <= low <= high <= 1
        and math.isclose(test.difference, test.compressed_score - test.original_score, abs_tol=1e-9)
    )


def _numbers(test: PairedTest) -> tuple[float, ...]:
    return test.original_accuracy, test.compressed_accuracy, test.difference, *test.difference_interval, test.p_value


def pareto_front(candidates: Iterable[CompressionCandidate]) -> tuple[str, ...]:
    """Return the names on the Pareto front of headline metric, file size, latency, parameters and multiply-adds."""
    succeeded = [c for c in candidates if not c.failed]

    def objectives(c: CompressionCandidate) -> tuple[float, ...]:
        return c.headline[1], -c.bytes, -c.latency, -c.parameters, -c.multiply_adds

    def is_dominated(c: CompressionCandidate) -> bool:
        return any(
            objectives(o) != objectives(c) and all(a >= b for a, b in zip(objectives(o), objectives(c), strict=True))
            for o in succeeded
        )

    return tuple(c.name for c in succeeded if not is_dominated(c))


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
