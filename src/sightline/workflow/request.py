"""What was asked of `train`, kept in the run until all that it leaves open is decided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sightline import jsonio
from sightline.config import RunConfig, epochs, parse, recipes, resolve
from sightline.data.finding import Finding
from sightline.data.index import Sources, as_list
from sightline.data.index import index as make_index
from sightline.data.sources.listing import Listing
from sightline.errors import DataError, ModelError
from sightline.evaluation.binary import check_positive
from sightline.models import registry, weights
from sightline.records import Index
from sightline.training import devices
from sightline.watch import Watcher
from sightline.workflow import check, choose, environment


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of `train` that decide the outcome; `layers` are the contents of the recipe and of the file.

    `sources` leaves arrays in memory out, of which there were some if `arrays`; `folder` is where relative paths begin.
    """

    sources: tuple[str, ...]
    arrays: bool
    folder: str
    recipe: str
    layers: tuple[dict[str, Any], ...]
    assignments: tuple[str, ...]

    @classmethod
    def of(cls, sources: Sources, recipe: str, config: Path | str | None, assignments: Sequence[str]) -> Request:
        """Read what the arguments name; raises `ConfigError`."""
        layers = [recipes.load(recipe)]
        if config is not None:
            layers.append(parse.read_toml(Path(config)))
        named = tuple(str(s) for s in as_list(sources) if not isinstance(s, Listing))
        arrays = len(named) < len(as_list(sources))
        return cls(named, arrays, str(Path.cwd()), recipe, tuple(layers), tuple(assignments))

    @classmethod
    def from_dict(cls, values: Any, where: str) -> Request:
        """Undo `to_dict`; raises `ModelError`, which begins with `where`, if `values` are of something else."""
        try:
            return jsonio.build(cls, values, f"{where}: the request")
        except ModelError as error:
            raise ModelError(f"{error} Train anew with --force.") from error

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    def settings(self) -> RunConfig:
        """Return the settings as far as they were given; raises `UsageError` for wrong ones or an unknown model."""
        given = resolve(*self.layers, assignments=self.assignments)
        if given.model.name != "auto":
            registry.find(given.model.name)
        return given

    def sets(self, key: str) -> bool:
        """Tell whether the user, not the recipe, set the dotted `key`."""
        if any(text.partition("=")[0].strip() == key for text in self.assignments):
            return True
        *tables, name = key.split(".")
        for layer in self.layers[1:]:
            table: Any = layer
            for part in tables:
                table = table.get(part, {}) if isinstance(table, dict) else {}
            if isinstance(table, dict) and name in table:
                return True
        return False

    def notes(self, config: RunConfig) -> Iterator[str]:
        """Yield what became of settings in `config` that the user made for all stages, and stages have of their own."""
        train = config.train
        if train.stages and self.sets("train.epochs"):
            yield f"train.epochs is {train.epochs}, and the stages have {epochs.describe(train)}"
        for key, name in (("train.optimizer.learning_rate", "learning_rate"), ("train.batch_size", "batch_size")):
            own = [getattr(stage, name) is not None for stage in train.stages]
            if own and all(own) and self.sets(key):
                yield f"{key} has no effect: every stage has its own; set train.stages.0.{name} and so on"

    def again(self, sources: Sources | None) -> Sources:
        """Return the sources to read once more: `sources` if given, else those of the request.

        Raises `DataError` where the request held arrays, which nothing keeps.
        """
        if sources is not None:
            return sources
        if self.arrays:
            raise DataError("This run was begun with arrays, which it does not keep: give them again, from Python.")
        return self.reached()

    def reached(self) -> list[str]:
        """Return the sources that have a name, as they are reached from here."""
        return [self._reach(text) for text in self.sources]

    def anchored(self, config: RunConfig) -> RunConfig:
        """Return settings of this request with their files as they are reached from here."""
        patch, labels, root = (
            text and self._reach(text) for text in (config.data.patch, config.data.labels, config.data.root)
        )
        data = replace(config.data, patch=patch, labels=labels, root=root)
        start = config.model.weights
        model = config.model if start in weights.WORDS else replace(config.model, weights=self._reach(start))
        return replace(config, data=data, model=model)

    def _reach(self, text: str) -> str:
        """Return a path, relative to where the request was made, as it is reached from here; a name as it is."""
        there = Path(self.folder, text)
        return str(there) if Path(self.folder) != Path.cwd() and there.exists() else text


def settle(sources: Sources, request: Request, watcher: Watcher) -> tuple[RunConfig, Index, tuple[Finding, ...]]:
    """Index the images, start the backend and complete the settings, except for what `decided` adds.

    Return the settings, the index and its findings.
    """
    given = request.anchored(request.settings())
    environment.check_packages(given)
    threads = given.device.threads or None
    index = make_index(sources, watcher.progress, threads, options=given.data)
    index, findings = check.before(index, given, watcher)
    check_positive(sorted({picture.label for picture in index.pictures}), given.evaluation.positive)
    if request.recipe == "auto":
        environment.start(given.device)
        chosen = choose.recipe(index)
        watcher.say(f"{chosen.recipe}: {chosen.why}")
        given = request.anchored(choose.laid_on(chosen, request.layers, request.assignments))
    for note in request.notes(given):
        watcher.say(note)
    settled = choose.settle(replace(given, data=replace(given.data, sources=request.sources)), index)
    environment.start(settled.device)
    return settled, index, findings


def start_weights(config: RunConfig) -> Path | None:
    """Return the file that the network starts from, None for random weights; raises `ModelError` if it is missing."""
    model, picture = config.model, config.picture
    entry = registry.find(model.name)
    return weights.find(entry, model.weights, model.alpha, picture.height or 0, picture.width or 0)


def decided(config: RunConfig, start: Path | None, processes: int = 1) -> RunConfig:
    """Return `config` with what this machine decided: backend, threads, devices, hosts, whether there are weights."""
    found = config.model.weights
    if found == "auto":
        found = "none" if start is None else "imagenet"
    device = devices.settled(environment.decided(config.device), processes)
    return replace(config, model=replace(config.model, weights=found), device=device)
