"""Complete the configuration of a run from a request, or restore that of a recorded run.

    merge_layers -> [index the images, check them] -> recipe -> IMMEDIATE_STEPS -> {run directory} -> MEASURED_STEPS

The immediate steps decide whether an existing run has the same settings. The measured ones run once the run directory
exists, so that a process killed during them leaves a run that can be resumed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sightline.callbacks import Callback, Progress, no_progress
from sightline.config import InputConfig, RunConfig, recipes
from sightline.data.checks.finding import Finding
from sightline.data.dataset import check_classes
from sightline.data.indexing import Sources, build_index
from sightline.data.label_patch import find_unused_patch, load_and_apply_patch
from sightline.data.sample_range import SampleRange, resolve_range
from sightline.data.types import Index
from sightline.errors import plural
from sightline.evaluation.binary import check_positive_class
from sightline.preprocessing import PreprocessingSpec
from sightline.runs import environment, preflight, steps
from sightline.runs.facts import THIS_MACHINE, DataFacts, Machine, build_decoding_spec
from sightline.runs.folds import select_images
from sightline.runs.steps import RecipeChoice, Step
from sightline.runs.train_request import TrainRequest
from sightline.tasks.protocol import find_task


@dataclass(frozen=True, slots=True)
class RunInputs:
    """The settings of a run and its indexed images, with their findings and the `choice` of recipe if it was ``auto``.

    Both are omitted for a run that has recorded them.
    """

    config: RunConfig
    index: Index
    findings: tuple[Finding, ...] = ()
    choice: RecipeChoice | None = None


def resolve_request(request: TrainRequest, sources: Sources, callback: Callback) -> RunInputs:
    """Index and check the images of a new run, and make every choice that takes no time; starts the backend.

    Raises `SightlineError`s for settings and images that cannot be trained with.
    """
    config = request.with_relative_paths(request.merge_layers())
    environment.check_packages(config)
    targets, threads = find_task(config.model.task).targets, config.device.threads or None
    index = build_index(sources, callback.on_progress, threads, options=config.data, targets=targets)
    if not config.data.patch and (unused := find_unused_patch(index)) is not None:
        path, count = unused
        callback.on_message(
            f"{path} holds {plural(count, 'correction')} of these images: to use them, add --patch {path}"
        )
    index, findings = preflight.run_preflight_checks(index, config, callback)
    check_positive_class(sorted({image.label for image in index.images}), config.evaluation.positive_class)
    facts = DataFacts.from_index(index, find_task(config.model.task))
    config, choice = merge_recipe(request, facts, THIS_MACHINE)
    if choice is not None:
        callback.on_message(f"{choice.recipe}: {choice.reason}")
    config = replace(config, data=replace(config.data, sources=request.sources))
    config = apply_steps(config, steps.IMMEDIATE_STEPS, facts, THIS_MACHINE, callback)
    for note in request.override_notes(config):  # once it is known which stages are solved
        callback.on_message(note)
    THIS_MACHINE.start_backend(config.device)
    return RunInputs(config, index, findings, choice)


def complete_settings(inputs: RunInputs, callback: Callback, machine: Machine) -> RunInputs:
    """Make the choices that take time; afterwards no setting is open."""
    facts = DataFacts.from_index(inputs.index, find_task(inputs.config.model.task), callback.on_progress)
    config = apply_steps(inputs.config, steps.MEASURED_STEPS, facts, machine, callback)
    assert not list(steps.list_unresolved(config)), "a step left a setting open"
    return replace(inputs, config=config)


def restore_inputs(
    config: RunConfig, request: TrainRequest, sources: Sources | None, patch: Path | None, callback: Callback
) -> RunInputs:
    """Index the images of a run with its recorded settings and corrections; chooses nothing anew."""
    config = request.with_relative_paths(config)
    environment.check_packages(config)
    environment.start_backend(config.device)
    threads = config.device.threads or None
    targets, images = find_task(config.model.task).targets, request.resolve_sources(sources)
    index = build_index(images, callback.on_progress, threads, options=config.data, targets=targets)
    index = select_images(load_and_apply_patch(index, patch), config.split)
    check_classes(index, targets)
    return RunInputs(config, index)


def merge_recipe(request: TrainRequest, facts: DataFacts, machine: Machine) -> tuple[RunConfig, RecipeChoice | None]:
    """Return the requested settings merged over their recipe, and the choice of the recipe if it is ``auto``."""
    choice: RecipeChoice | None = None
    base: tuple[dict[str, Any], ...] = ()
    if request.recipe == "auto":
        requested = request.merge_layers()
        machine.start_backend(requested.device)
        choice = steps.choose_recipe(facts, machine, requested.model)
        base = (recipes.load(choice.recipe), choice.settings)
    config = request.merge_layers(*base)
    if unsolved := steps.list_unsolved(config):
        config = request.merge_layers(*base, unsolved=unsolved)
    if choice is not None and config.train.effort and not request.has_efforts and recipes.EFFORTS not in base[0]:
        choice = replace(choice, reason=f"{choice.reason}; it trains in one way only, so the effort has no effect")
        config = replace(config, train=replace(config.train, effort=None))
    return request.with_relative_paths(config), choice


def apply_steps(
    config: RunConfig, to_apply: Iterable[Step], facts: DataFacts, machine: Machine, callback: Callback
) -> RunConfig:
    """Return `config` after some steps, whose notes are reported."""
    for step in to_apply:
        config, note = step(config, facts, machine)
        if note:
            callback.on_message(note)
    return config


def build_preprocess(config: RunConfig) -> PreprocessingSpec:
    """Return the preprocessing spec of a configuration; without a range if that is still open."""
    size = config.input
    assert size.height is not None
    assert size.width is not None
    assert size.channels is not None
    assert size.resize != "auto"
    value_range = None if isinstance(size.value_range, str) else size.value_range
    return PreprocessingSpec(
        size.height, size.width, size.channels, size.resize, size.interpolation, value_range, size.page,
        size.max_megapixels,
    )  # fmt: skip


def inspection_preprocess(
    input_config: InputConfig, index: Index, progress: Progress = no_progress, threads: int | None = None
) -> tuple[PreprocessingSpec, SampleRange]:
    """Return a preprocessing spec for inspecting images without training; all possible training images set its range.

    Its size is the default; replace it with `PreprocessingSpec.with_size`.
    """
    training = [i for i, image in enumerate(index.images) if image.split in (None, "train")]
    spec = build_decoding_spec(input_config)
    sample_range = resolve_range(index, training, input_config.value_range, spec, progress, threads)
    return replace(spec, value_range=sample_range.limits), sample_range
