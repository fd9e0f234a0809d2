"""`compress`: from a run to a smaller model that is no worse, and to all that was tried on the way."""

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

STEPS = 100  # of a recovery, where the number of its epochs is not given


@dataclass(frozen=True, slots=True)
class Compression:
    """The outcome of a search; `candidates` begins with the large model, `front` names those that no other beats.

    `best` is the smallest that meets the budget, None where none does: `nearest` and `misses` then say how near it
    came. `judgement` compares `best` with the large model on pictures that the search has not seen, of which a share of
    `max_drop` may be lost.
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
        """Whether the budget was met, on the test too: no loss that it can tell, or none beyond `max_drop`."""
        if self.best is None or self.judgement is None:
            return False
        return not self.judgement.worse or self.judgement.difference >= -self.max_drop - 1e-9

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints and ``front.json`` keeps."""
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
    """Search for the smallest form of the run `model` that meets `budget`.

    `data`: other labelled pictures than the run's own; a picture that the run knows keeps its part. `out`: the search's
    folder, ``<run>/compressed`` if None; a search that was stopped goes on there. `epochs`: of each recovery, at most
    three times as many for a new head or a student; None: a quarter of those of all of the run's stages, more where
    there are few images, 2 to 20. Raises `SightlineError`s.
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
    watcher.say(f"epochs: {recovery} for each recovery, at most {NEW_TIMES * recovery} for a new head or a student")
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
    """Return a hash of the images with labels and splits: what is kept of a search is of these alone."""
    rows = [(p.sha256, p.label, part) for p, part in zip(data.pictures, data.parts, strict=True)]
    return hashlib.sha256(jsonio.dumps(rows).encode()).hexdigest()[:16]


def _epochs(config: RunConfig, data: Dataset) -> int:
    """A quarter of the run's epochs, more where there are few pictures: `STEPS` steps, if 20 epochs have as many."""
    train = config.train
    steps = math.ceil(data.counts()["train"] / train.batch_size)
    planned = [train.epochs if stage.epochs is None else stage.epochs for stage in train.stages] or [train.epochs]
    return min(max(round(sum(planned) / 4), math.ceil(STEPS / steps), 2), 20)


def _means(means: Sequence[str]) -> tuple[str, ...]:
    for name in means:
        if name not in MEANS:
            raise UsageError(f"There is no means {name!r}.{suggest(name, MEANS)}")
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
            f"The pictures of {index.name} have the classes {', '.join(dataset.classes[:8])}, the model "
            f"{', '.join(predictor.classes[:8])}: they must be the same."
        )
    if not dataset.counts()["validation"]:
        raise DataError(
            f"{index.name} has no validation pictures, and candidates are judged on them: train with "
            "split.validation above 0, or name pictures with --data."
        )
    return dataset, index


def _index(run: Run, data: Sources | None, watcher: Watcher) -> Index:
    """Return the run's own images, or others, among which the run's own keep their splits."""
    if data is None:
        own = images.find(run, watcher.progress)
        images.check_complete(run, own, "images", ", or name others with --data")
        return own.index
    index = images.placed(run.read_data() or (), make_index(data, watcher.progress))
    known = {row.sha256 for row in run.read_data() or ()}
    count = sum(p.sha256 in known for p in index.pictures)
    watcher.say(
        f"{count} of {plural(len(index.pictures), 'image')} of {index.name} are the run's own and keep their splits"
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
    """Return the comparison of the chosen model with the large one, made once for each that is ever chosen."""
    known = store.judgements()
    if best.name not in known:
        if known:
            watcher.say(
                f"The test part was asked about {', '.join(known)} already, under another budget: the more often it is "
                "asked, the kinder its answer to the one that is kept."
            )
        known[best.name] = _judged(store, best, data, watcher)
        store.keep_judgements(known)
    return known[best.name]


def _judged(store: Store, best: Candidate, data: Dataset, watcher: Watcher) -> Judgement:
    """Compare the chosen model with the large one on the test part; where there is none, on validation again."""
    part: Part = "test" if data.counts()["test"] else "validation"
    if part == "validation":
        watcher.say("There are no test pictures: both are compared on validation, by which the small one was chosen.")
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
    """Return the bytes of a size such as ``2MB`` or ``500 KiB``; raises `UsageError`.

    >>> size("2MB"), size("1.5 KiB")
    (2000000, 1536)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise UsageError(f"{text!r} is no size: give a number and B, KB, MB or GB, as in 2MB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def milliseconds(text: str) -> float:
    """Return the milliseconds of a time such as ``5ms`` or ``0.1s``; raises `UsageError`.

    >>> milliseconds("5ms"), milliseconds("0.5 s")
    (5.0, 500.0)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|us)?\s*", text)
    if match is None:
        raise UsageError(f"{text!r} is no time: give milliseconds, as in 5ms.")
    return float(match[1]) * {"ms": 1, "s": 1000, "us": 0.001, None: 1}[match[2]]
