"""`compress`: search for the smallest non-inferior model of a run, and record all candidates."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sightline import files, jsonio
from sightline.compression import distill, judge
from sightline.compression.judge import Judgement
from sightline.compression.recovery import NEW_TIMES, Trainer
from sightline.compression.search import MEANS, Budget, Search, Subject
from sightline.compression.store import Candidate, Store, front
from sightline.config import RunConfig
from sightline.data.dataset import Dataset, assemble
from sightline.data.index import Sources
from sightline.data.index import index as make_index
from sightline.errors import DataError, UsageError, plural, suggest
from sightline.models.build import Plan, outline
from sightline.models.describe import weights_sha256
from sightline.prediction import bundle, parity
from sightline.prediction.keras import KerasPredictor
from sightline.preprocess import Preprocess
from sightline.records import Index, Part
from sightline.report import front as drawing
from sightline.run import Run
from sightline.watch import Watcher
from sightline.workflow import environment, images, ship
from sightline.workflow.classifier import load

STEPS = 100  # minimum steps of a fine-tuning, if the number of epochs is not given


@dataclass(frozen=True, slots=True)
class Compression:
    """The result of a search; `candidates` begins with the original model, `front` names the Pareto-optimal ones.

    `best` is the smallest that meets the budget, or None: `nearest` and `misses` then say how close the search came.
    `judgement` compares `best` with the original model on images that the search has not used; an accuracy drop of up
    to `max_drop` is allowed.
    """

    out: Path
    candidates: tuple[Candidate, ...]
    front: tuple[str, ...]
    best: Candidate | None
    judgement: Judgement | None
    nearest: Candidate
    misses: tuple[str, ...]
    max_drop: float = 0.0

    @property
    def reached(self) -> bool:
        """Whether the budget is met on the test split too: no significant loss, or none beyond `max_drop`."""
        if self.best is None or self.judgement is None:
            return False
        return not self.judgement.worse or self.judgement.difference >= -self.max_drop - 1e-9

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``--json`` and ``front.json``."""
        return {
            "out": str(self.out),
            "reached": self.reached,
            "best": self.best.name if self.best else None,
            "judgement": asdict(self.judgement) | {"worse": self.judgement.worse} if self.judgement else None,
            "nearest": self.nearest.name,
            "misses": list(self.misses),
            "front": list(self.front),
            "candidates": [asdict(c) for c in self.candidates],
        }


def compress(
    model: Path | str,
    *,
    data: Sources | None = None,
    out: Path | str | None = None,
    budget: Budget | None = None,
    means: Sequence[str] = MEANS,
    epochs: int | None = None,
    watcher: Watcher | None = None,
) -> Compression:
    """Search for the smallest version of the run `model` that meets `budget`.

    `data`: labeled images to use instead of the run's own; images of the run keep their split. `out`: the folder of
    the search, by default ``<run>/compressed``; an interrupted search continues there. `epochs`: epochs of each
    fine-tuning, up to three times as many for a new head or a student; by default a quarter of the run's epochs, more
    for few images, from 2 to 20. Raises `SightlineError`s.
    """
    watcher, budget = watcher or Watcher(), budget or Budget()
    chosen = _means(means)
    run = Run.open(Path(model))
    config = run.config
    environment.check_packages(config)
    environment.start(config.device)
    predictor = load(run.path, engine="keras").predictor
    assert isinstance(predictor, KerasPredictor)
    dataset, index = _pictures(run, config, predictor, data, watcher)
    recovery = _epochs(config, dataset) if epochs is None else epochs
    watcher.say(f"epochs: {recovery} per fine-tuning, at most {NEW_TIMES * recovery} for a new head or a student")
    sha256 = weights_sha256(predictor.model)
    path = Path(out) if out is not None else run.path / "compressed"
    if out is None:
        files.refuse_links(run.path, path)
    key = {
        "weights_sha256": sha256, "data": dataset.name, "pictures": len(dataset.pictures), "content": _content(dataset),
        "means": list(chosen),
        "epochs": recovery, "max_drop": budget.max_drop, "slack": judge.SLACK,
    }  # fmt: skip
    store = Store(path, key)
    trainer = _trainer(config, predictor, dataset, chosen, recovery, path, watcher)
    subject = _subject(run, config, predictor, dataset, index, sha256)
    found = Search(subject, trainer, store, budget, chosen, watcher)
    found.go()
    return _concluded(found, store, dataset, watcher)


def _content(data: Dataset) -> str:
    """Return a hash of images, labels and splits, which identifies the data of a search."""
    rows = [(p.sha256, p.label, part) for p, part in zip(data.pictures, data.parts, strict=True)]
    return hashlib.sha256(jsonio.dumps(rows).encode()).hexdigest()[:16]


def _epochs(config: RunConfig, data: Dataset) -> int:
    """Return a quarter of the run's epochs, or enough for `STEPS` steps with few images, from 2 to 20."""
    train = config.train
    steps = math.ceil(data.counts()["train"] / train.batch_size)
    planned = [train.epochs if stage.epochs is None else stage.epochs for stage in train.stages] or [train.epochs]
    return min(max(round(sum(planned) / 4), math.ceil(STEPS / steps), 2), 20)


def _means(means: Sequence[str]) -> tuple[str, ...]:
    for name in means:
        if name not in MEANS:
            raise UsageError(f"There is no compression method {name!r}.{suggest(name, MEANS)}")
    return tuple(name for name in MEANS if name in means)


def _pictures(
    run: Run, config: RunConfig, predictor: KerasPredictor, data: Sources | None, watcher: Watcher
) -> tuple[Dataset, Index]:
    index = _index(run, data, watcher)
    dataset = assemble(
        index, predictor.preprocess, config.split, config.seed, keep=config.data.cache, progress=watcher.progress,
        threads=config.device.threads or None,
    )  # fmt: skip
    if dataset.classes != predictor.classes:
        raise DataError(
            f"The images of {index.name} have the classes {', '.join(dataset.classes[:8])}, but the model has "
            f"{', '.join(predictor.classes[:8])}: they must be the same."
        )
    if not dataset.counts()["validation"]:
        raise DataError(
            f"{index.name} has no validation images, which candidates are evaluated on: train with "
            "split.validation above 0, or give images with --data."
        )
    return dataset, index


def _index(run: Run, data: Sources | None, watcher: Watcher) -> Index:
    """Index the run's own images, or other ones, in which images of the run keep their splits."""
    if data is None:
        own = images.find(run, watcher.progress)
        images.check_complete(run, own, "images", ", or give others with --data")
        return own.index
    index = images.placed(run.read_data() or (), make_index(data, watcher.progress))
    known = {row.sha256 for row in run.read_data() or ()}
    count = sum(p.sha256 in known for p in index.pictures)
    watcher.say(
        f"{count} of {plural(len(index.pictures), 'image')} of {index.name} belong to the run and keep their splits"
    )
    return index


def _trainer(
    config: RunConfig, predictor: KerasPredictor, data: Dataset, means: Sequence[str], epochs: int, path: Path,
    watcher: Watcher,
) -> Trainer:  # fmt: skip
    model, train = predictor.model, data.part("train")
    height, width, channels = model.input.shape[1:]
    plan = Plan(config.model, height, width, channels, len(data.classes), standard=(127.5, 64.0))
    known: list[distill.Teacher] = []

    def teacher() -> distill.Teacher:
        if not known:
            known.append(distill.teacher(model, train, config, path / "teacher.npy", watcher.progress))
        return known[0]

    return Trainer(
        config, train, data.part("validation"), epochs, outline(plan).backbone,
        any(stage.thaw >= 0 for stage in config.train.stages), teacher if "distill" in means else None, watcher,
    )  # fmt: skip


def _subject(
    run: Run, config: RunConfig, predictor: KerasPredictor, data: Dataset, index: Index, sha256: str
) -> Subject:
    def pack(model: Any, graph: bytes, small: Any, facts: Mapping[str, Any]) -> bundle.Bundle:
        return ship.pack(
            model,
            graph,
            small,
            data,
            index,
            config,
            **facts,
        )

    step = {"step": "train", "run": run.path.name, "model": config.model.name, "weights_sha256": sha256}
    preprocess: Preprocess = predictor.preprocess
    return Subject(
        predictor.model,
        config.model,
        config.seed,
        predictor.classes,
        preprocess,
        data,
        config.device.threads,
        step,
        pack,
        ship.calibrate if config.bundle.calibrate else None,
    )


def _concluded(found: Search, store: Store, data: Dataset, watcher: Watcher) -> Compression:
    candidates, best = tuple(found.candidates), found.best()
    nearest, misses = found.nearest()
    judgement = None
    if best is not None:
        judgement = _judgement(store, best, data, watcher)
        store.choose(best, best.name if best.precision == "float32" else best.parent or "")
    else:
        store.choose_none()
    drop = found.budget.max_drop
    result = Compression(store.path, candidates, front(candidates), best, judgement, nearest, tuple(misses), drop)
    _write(result, candidates[0].accuracy - drop)
    return result


def _judgement(store: Store, best: Candidate, data: Dataset, watcher: Watcher) -> Judgement:
    """Compare the chosen model with the original one; each chosen model is tested only once."""
    known = store.judgements()
    if best.name not in known:
        if known:
            watcher.say(
                f"The test split was already used for {', '.join(known)}, under another budget: the more often it is "
                "used, the more optimistic its result for the selected model."
            )
        known[best.name] = _judged(store, best, data, watcher)
        store.keep_judgements(known)
    return known[best.name]


def _judged(store: Store, best: Candidate, data: Dataset, watcher: Watcher) -> Judgement:
    """Compare the chosen model with the original one on the test split, or on validation if there is none."""
    part: Part = "test" if data.counts()["test"] else "validation"
    if part == "validation":
        watcher.say("There are no test images: comparing on the validation images that selected the small model.")
    samples = data.part(part)
    right = []
    for name in ("large", best.name):
        _, predictor = bundle.load(store.folder(name) / "bundle")
        answers = parity.probabilities(predictor, samples, task=f"{part} with {name}", progress=watcher.progress)
        right.append(np.equal(answers.argmax(1), samples.labels))
    return judge.judge(right[0], right[1], part)


def _write(result: Compression, floor: float) -> None:
    text = jsonio.dumps(result.to_dict(), indent=1) + "\n"
    files.write(result.out / "front.json", text.encode())
    best = result.best.name if result.best else None
    points = [
        drawing.Point(
            c.name,
            c.accuracy,
            c.bytes,
            c.latency,
            c.parameters,
            c.multiply_adds,
            front=c.name in result.front,
            best=c.name == best,
        )
        for c in result.candidates
        if not c.failed
    ]
    files.write(result.out / "front.png", drawing.front(points, floor, "Smaller models"))


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size(text: str) -> int:
    """Parse a size in bytes such as ``2MB`` or ``500 KiB``; raises `UsageError`.

    >>> size("2MB"), size("1.5 KiB")
    (2000000, 1536)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise UsageError(f"{text!r} is not a size: give a number and a unit (B, KB, MB, GB), as in 2MB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def milliseconds(text: str) -> float:
    """Parse a duration in milliseconds such as ``5ms`` or ``0.1s``; raises `UsageError`.

    >>> milliseconds("5ms"), milliseconds("0.5 s")
    (5.0, 500.0)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|us)?\s*", text)
    if match is None:
        raise UsageError(f"{text!r} is not a duration: give milliseconds, as in 5ms.")
    return float(match[1]) * {"ms": 1, "s": 1000, "us": 0.001, None: 1}[match[2]]
