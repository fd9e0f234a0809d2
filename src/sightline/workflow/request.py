"""The arguments of `train`, saved in the run until the configuration is resolved."""

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
    """The arguments of `train` that determine its result; `layers` are the contents of the recipe and of the TOML file.

    `sources` omits arrays in memory; `arrays` says whether there were any. `folder` is the base of relative paths.
    """

    sources: tuple[str, ...]
    arrays: bool
    folder: str
    recipe: str
    layers: tuple[dict[str, Any], ...]
    assignments: tuple[str, ...]

    @classmethod
    def of(cls, sources: Sources, recipe: str, config: Path | str | None, assignments: Sequence[str]) -> Request:
        """Create a request, reading the recipe and the configuration file; raises `ConfigError`."""
        layers = [recipes.load(recipe)]
        if config is not None:
            layers.append(parse.read_toml(Path(config)))
        named = tuple(str(s) for s in as_list(sources) if not isinstance(s, Listing))
        arrays = len(named) < len(as_list(sources))
        return cls(named, arrays, str(Path.cwd()), recipe, tuple(layers), tuple(assignments))

    @classmethod
    def from_dict(cls, values: Any, where: str) -> Request:
        """Undo `to_dict`; raises `ModelError`, whose message begins with `where`, for invalid values."""
        try:
            return jsonio.build(cls, values, f"{where}: the request")
        except ModelError as error:
            raise ModelError(f"{error} Retrain with --force.") from error

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return asdict(self)

    def settings(self) -> RunConfig:
        """Return the settings before resolution; raises `UsageError` for invalid ones or an unknown model."""
        given = resolve(*self.layers, assignments=self.assignments)
        if given.model.name != "auto":
            registry.find(given.model.name)
        return given

    def sets(self, key: str) -> bool:
        """Return whether the user, not the recipe, set the dotted `key`."""
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
        """Yield notes on settings of the user that stages of `config` override."""
        train = config.train
        if train.stages and self.sets("train.epochs"):
            yield f"train.epochs is {train.epochs}, and the stages have {epochs.describe(train)}"
        for key, name in (("train.optimizer.learning_rate", "learning_rate"), ("train.batch_size", "batch_size")):
            own = [getattr(stage, name) is not None for stage in train.stages]
            if own and all(own) and self.sets(key):
                yield f"{key} has no effect: every stage overrides it; set train.stages.0.{name} etc. instead"

    def again(self, sources: Sources | None) -> Sources:
        """Return the sources to read on resume: `sources` if given, else those of the request.

        Raises `DataError` if the request had arrays, which are not stored.
        """
        if sources is not None:
            return sources
        if self.arrays:
            raise DataError("This run was started with arrays, which it does not store: pass them again, from Python.")
        return self.reached()

    def reached(self) -> list[str]:
        """Return the named sources, relative to the current directory."""
        return [self._reach(text) for text in self.sources]

    def anchored(self, config: RunConfig) -> RunConfig:
        """Return `config` with file paths relative to the current directory."""
        patch, labels, root = (
            text and self._reach(text) for text in (config.data.patch, config.data.labels, config.data.root)
        )
        data = replace(config.data, patch=patch, labels=labels, root=root)
        start = config.model.weights
        model = config.model if start in weights.WORDS else replace(config.model, weights=self._reach(start))
        return replace(config, data=data, model=model)

    def _reach(self, text: str) -> str:
        """Resolve a path against the folder of the request; other names are returned unchanged."""
        there = Path(self.folder, text)
        return str(there) if Path(self.folder) != Path.cwd() and there.exists() else text


def settle(sources: Sources, request: Request, watcher: Watcher) -> tuple[RunConfig, Index, tuple[Finding, ...]]:
    """Index the images, start the backend and resolve the settings, except for those that `decided` resolves.

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
    """Return the file with the initial weights, None for random ones; raises `ModelError` if it is missing."""
    model, picture = config.model, config.picture
    entry = registry.find(model.name)
    return weights.find(entry, model.weights, model.alpha, picture.height or 0, picture.width or 0)


def decided(config: RunConfig, start: Path | None, processes: int = 1) -> RunConfig:
    """Return `config` with what depends on this machine resolved: backend, threads, devices, hosts, weights."""
    found = config.model.weights
    if found == "auto":
        found = "none" if start is None else "imagenet"
    device = devices.settled(environment.decided(config.device), processes)
    return replace(config, model=replace(config.model, weights=found), device=device)
