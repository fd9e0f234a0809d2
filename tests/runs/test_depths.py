"""How many layers fine-tuning unfreezes where the recipe leaves it open, in each network with ImageNet weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import networks
import sightline as sl
from sightline.callbacks import Callback
from sightline.config import RunConfig, StageConfig, TrainConfig, recipes, resolve_config
from sightline.data.sample_range import SampleRange
from sightline.models import registry
from sightline.models.build import ModelSpec, build_shapes_only
from sightline.runs import steps
from sightline.runs.facts import THIS_MACHINE, DataFacts, Machine
from sightline.runs.resolve import apply_steps
from sightline.training.stages import find_freeze_boundary

FACTS = DataFacts(600, 3, 300, False, 0, lambda _config: SampleRange(None, ""))
DEEP = {"efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2", "mobilenetv2", "resnet50", "densenet121"}
SHALLOW = {  # the layers of the balanced and of the best effort
    "vgg16": (6, 12), "vgg19": (7, 14), "squeezenet": (12, 23), "mobilenet": (28, 55), "convnext-tiny": (44, 87),
}  # fmt: skip


@dataclass(frozen=True)
class Counted(Machine):
    """This machine, with a network whose layers are counted already."""

    count: int = 0

    def count_layers(self, config: RunConfig, facts: DataFacts) -> int:
        return self.count


def choose(name: str, effort: str, *assignments: str, machine: Machine = THIS_MACHINE) -> RunConfig:
    values = [f"model.name={name}", f"train.effort={effort}", *assignments]
    config = resolve_config(recipes.load("transfer"), assignments=values)
    return apply_steps(config, steps.IMMEDIATE_STEPS, FACTS, machine, Callback())


PRETRAINED = [name for name in registry.ENTRIES if registry.get_entry(name).pretrained is not None]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in networks.LARGE else name for name in PRETRAINED]
)
def test_the_depth_of_fine_tuning_fits_every_pretrained_network(name: str) -> None:
    model = replace(resolve_config(recipes.load("transfer")).model, name=name)
    network = build_shapes_only(ModelSpec(model, 96, 96, 3, 3))
    for effort in ("balanced", "best"):
        config = choose(name, effort, machine=Counted(count=len(network.backbone)))
        head, fine_tune = config.train.stages
        assert head.unfreeze == 0
        assert 0 < fine_tune.depth < len(network.backbone)
        assert find_freeze_boundary(network, fine_tune) is not None, "the layers below run once over each view"
        assert any(network.model.get_layer(layer).weights for layer in network.backbone[-fine_tune.depth :])
        if name in DEEP:
            assert fine_tune.depth == {"balanced": 46, "best": 90}[effort]
        if name in SHALLOW:
            assert fine_tune.depth == SHALLOW[name][effort == "best"]


def test_the_reference_has_as_many_layers_as_the_rule_says() -> None:
    config = resolve_config(recipes.load("transfer"), assignments=["input.height=96", "input.width=96"])
    config = apply_steps(config, steps.IMMEDIATE_STEPS, FACTS, THIS_MACHINE, Callback())
    assert config.model.name == steps.REFERENCE_MODEL
    assert THIS_MACHINE.count_layers(config, FACTS) == steps.REFERENCE_LAYERS


def test_the_head_alone_needs_no_depth() -> None:
    assert [stage.unfreeze for stage in choose("vgg16", "fast").train.stages] == [0]


@pytest.mark.parametrize("depth", [-1, 0, 3, 46])
def test_a_depth_that_is_given_stays(depth: int) -> None:
    assert choose("vgg16", "balanced", f"train.stages.1.unfreeze={depth}").train.stages[1].unfreeze == depth


def test_an_open_depth_is_a_setting_to_choose() -> None:
    config = RunConfig(train=TrainConfig(stages=(StageConfig(unfreeze="auto"),)))
    assert "train.stages.0.unfreeze" in set(steps.list_unresolved(config))
    with pytest.raises(
        sl.SightlineError, match=r"train\.stages\.0\.unfreeze expects a whole number or auto, not 'all'"
    ):
        resolve_config({"train": {"stages": [{"unfreeze": "all"}]}})


@pytest.mark.slow
def test_a_shallow_network_is_fine_tuned_with_fewer_layers(tmp_path: Path) -> None:
    """From random weights, because no package contains those of ImageNet."""
    images, labels = np.random.default_rng(0).integers(0, 256, (24, 40, 40, 3), np.uint8), ["a", "b"] * 12
    settings = {"model.weights": "none", "input.height": 40, "split.validation": 0.25, "train.epochs": 2}
    data = sl.Dataset.from_arrays(images, labels)
    run = sl.train(data, recipe="transfer", model="squeezenet", out=tmp_path / "run", set=settings)
    recorded = run.config.train.stages[1]
    assert 0 < recorded.depth < 46
    assert f"unfreeze = {recorded.depth}" in (tmp_path / "run" / "config.toml").read_text()
