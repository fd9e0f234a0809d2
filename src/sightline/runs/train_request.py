"""The arguments of `train`, saved in the run until the configuration is resolved."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sightline import _io, backend, jsonio
from sightline.config import RunConfig, parse, recipes, resolve_config, stage_epochs
from sightline.data.indexing import Source, Sources, list_of_sources
from sightline.data.remote import is_url
from sightline.data.sources.listing import SourceListing
from sightline.errors import ConfigError, DataError, ModelError
from sightline.models import pretrained, registry
from sightline.tasks.protocol import find_task


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """The arguments of `train` that determine its result; `layers` are the contents of the recipe and of the TOML file.

    `sources` omits arrays in memory; `arrays` is true if there were any. `folder` is the base of relative paths.
    """

    sources: tuple[str, ...]
    arrays: bool
    folder: str
    recipe: str
    layers: tuple[dict[str, Any], ...]
    assignments: tuple[str, ...]

    @classmethod
    def create(
        cls, sources: Sources, recipe: str, config: Path | str | None, assignments: Sequence[str]
    ) -> TrainRequest:
        """Create a request from the recipe and the configuration file, which may name it; raises `ConfigError`."""
        settings = [] if config is None else [parse.read_toml(_io.expand_home(config))]
        for values in settings:
            if isinstance(name := values.get("recipe"), str):
                if "auto" not in (name, recipe) and name != recipe:
                    raise ConfigError(
                        f"{config} is for the recipe {name}, and --recipe is {recipe}: leave one of them out."
                    )
                values["recipe"] = recipe = name if recipe == "auto" else recipe
        layers = [recipes.load(recipe), *settings]
        source_names = tuple(_normalize(s) for s in list_of_sources(sources) if not isinstance(s, SourceListing))
        arrays = len(source_names) < len(list_of_sources(sources))
        return cls(source_names, arrays, str(Path.cwd()), recipe, tuple(layers), tuple(assignments))

    @classmethod
    def from_dict(cls, values: Any, prefix: str) -> TrainRequest:
        """Create a request from `to_dict`; raises `ModelError`, with a message that begins with `prefix`."""
        try:
            return jsonio.build(cls, values, f"{prefix}: the request")
        except ModelError as error:
            raise ModelError(f"{error} Retrain with --force.") from error

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return asdict(self)

    def merge_layers(self, *base: dict[str, Any], unsolved: Collection[int] = ()) -> RunConfig:
        """Return the requested settings, over those of `base` if given; those that depend on the images are still open.

        `base` is a recipe chosen for ``auto``, which stays the recorded name; for `unsolved` see `resolve_config`.
        Raises `UsageError` for invalid settings, for an unknown model or task, and for an effort that the recipe does
        not have.
        """
        recorded_name = [{"recipe": self.recipe}] if base else []
        config = resolve_config(*base, *self.layers, *recorded_name, assignments=self.assignments, unsolved=unsolved)
        if config.model.task != "single_label" and not self.is_set_by_user("model.head"):
            config = replace(config, model=replace(config.model, head="softmax"))  # the recipe's may be for two classes
        backend.prefer(config.device.backend)  # before other packages are searched for names
        task = find_task(config.model.task)
        task.check_settings(config)
        if config.input.tile and not task.targets.are_masks:
            raise ConfigError("input.tile is for masks: leave it out, or set model.task=segmentation.")
        monitors = {"early_stopping": config.train.early_stopping.monitor, "schedule": config.train.schedule.monitor}
        for table, monitor in monitors.items():
            if monitor == "val_mean_iou" and not task.targets.are_masks:
                raise ConfigError(
                    f"train.{table}.monitor is val_mean_iou, which is a metric of masks: choose val_accuracy or "
                    "val_loss, or set model.task=segmentation."
                )
            if monitor == "val_calibrated_loss" and not task.has_calibrated_loss:
                raise ConfigError(
                    f"train.{table}.monitor is val_calibrated_loss, which is for one class per image: choose val_loss."
                )
        if config.data.class_tree and task.targets.allows_several:
            raise ConfigError(
                "data.class_tree is for one class per image: leave it out, or use model.task=hierarchical."
            )
        if config.model.name != "auto":
            registry.get_entry(config.model.name)
        if config.train.effort and self.recipe != "auto" and not self.has_efforts:
            raise ConfigError(
                f"train.effort is {config.train.effort}, but the recipe {self.recipe} trains in one way only: leave it "
                "out, or use --recipe transfer."
            )
        return config

    @property
    def has_efforts(self) -> bool:
        """Whether the recipe, or the file of the user, has efforts to choose from."""
        return any(recipes.EFFORTS in layer for layer in self.layers)

    def is_set_by_user(self, key: str) -> bool:
        """Return whether the user, not the recipe, set the dotted `key`."""
        if any(text.partition("=")[0].strip() == key for text in self.assignments):
            return True
        *tables, name = key.split(".")
        for layer in self.layers[1:]:
            table: Any = layer
            for table_name in tables:
                table = table.get(table_name, {}) if isinstance(table, dict) else {}
            if isinstance(table, dict) and name in table:
                return True
        return False

    def override_notes(self, config: RunConfig) -> Iterator[str]:
        """Yield notes on settings of the user that stages of `config` override."""
        train = config.train
        if train.stages and self.is_set_by_user("train.epochs"):
            yield f"train.epochs is {train.epochs}, and the stages have {stage_epochs.describe_epochs(train)}"
        for key, name in (("train.optimizer.learning_rate", "learning_rate"), ("train.batch_size", "batch_size")):
            overridden = [stage.is_solved or getattr(stage, name) is not None for stage in train.stages]
            trained = [at for at, stage in enumerate(train.stages) if not stage.is_solved]
            if overridden and all(overridden) and self.is_set_by_user(key):
                reason = "every stage is solved, not trained by steps"
                if trained:
                    reason = f"every stage overrides it; set train.stages.{trained[0]}.{name} etc. instead"
                yield f"{key} has no effect: {reason}"
            for at in range(len(train.stages)):
                if at not in trained and self.is_set_by_user(f"train.stages.{at}.{name}"):
                    yield (
                        f"train.stages.{at}.{name} has no effect: the stage is solved, not trained by steps; "
                        f"--set train.stages.{at}.solver=gradient trains it"
                    )

    def resolve_sources(self, sources: Sources | None) -> Sources:
        """Return the sources to read on resume: `sources` if given, else those of the request.

        Raises `DataError` if the request had arrays, which are not stored.
        """
        if sources is not None:
            return sources
        if self.arrays:
            raise DataError("This run was started with arrays, which it does not store: pass them again, from Python.")
        return self.named_sources()

    def named_sources(self) -> list[str]:
        """Return the named sources, relative to the current directory."""
        return [self._relative_path(text) for text in self.sources]

    def with_relative_paths(self, config: RunConfig) -> RunConfig:
        """Return `config` with file paths relative to the current directory."""
        patch, labels, root = (
            text and self._relative_path(text) for text in (config.data.patch, config.data.labels, config.data.root)
        )
        tree = self._relative_path(config.data.class_tree) if config.data.reads_tree_file else config.data.class_tree
        data = replace(config.data, patch=patch, labels=labels, root=root, class_tree=tree)
        start = config.model.weights
        model = (
            config.model
            if start in pretrained.WEIGHT_CHOICES
            else replace(config.model, weights=self._relative_path(start))
        )
        return replace(config, data=data, model=model)

    def _relative_path(self, text: str) -> str:
        """Resolve a path against the folder of the request; other names are returned unchanged."""
        original_path = Path(self.folder, text)
        return str(original_path) if Path(self.folder) != Path.cwd() and _io.exists(original_path) else text


def _normalize(source: Source) -> str:
    """Return the spelling of a source that runs record: ``photos/`` and ``./photos`` are ``photos``."""
    text = str(source)
    return text if is_url(text) or not text else str(Path(text))
