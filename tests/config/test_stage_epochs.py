"""A number of epochs over stages: proportions, the total, and what was set on purpose."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.config import StageConfig, TrainConfig, recipes, resolve_config
from sightline.config.stage_epochs import describe_epochs, scale_stage_epochs
from sightline.errors import ConfigError


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(1, 100))
def test_the_total_is_met_and_no_stage_is_lost(before: list[int], total: int) -> None:
    stages = [{"epochs": n} for n in before]
    scale_stage_epochs({"epochs": total, "stages": stages}, (), ())
    after = [stage["epochs"] for stage in stages]
    working = [n for n in before if n]
    if working:
        assert sum(after) == max(total, len(working))
    for old, new in zip(before, after, strict=True):
        assert (new > 0) == (old > 0)
        if total >= sum(before):
            assert abs(new - old * total / max(sum(before), 1)) < 1, "in proportion"


def stage_epochs(
    *layers: dict[str, Any], assignments: tuple[str, ...] = (), recipe: str = "transfer-mobilenetv2"
) -> list[int | None]:
    return [
        stage.epochs for stage in resolve_config(recipes.load(recipe), *layers, assignments=assignments).train.stages
    ]


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        ((), [12, 2]),
        (("train.epochs=28",), [24, 4]),
        (("train.epochs=7",), [6, 1]),
        (("train.epochs=2",), [1, 1]),
        (("train.epochs=1",), [1, 1]),
        (("train.stages.0.epochs=0",), [0, 2]),
        (("train.epochs=10", "train.stages.1.epochs=4"), [6, 4]),  # what is set explicitly wins ...
        (("train.stages.1.epochs=4", "train.epochs=10"), [6, 4]),  # ... whatever the order
        (("train.epochs=10", "train.stages.0.epochs=8", "train.stages.1.epochs=8"), [8, 8]),
        (("train.epochs=3", "train.stages=[{name='a', epochs=5}]"), [5]),
        (("train.batch_size=3", "train.stages.0.epochs=5"), [5, 2]),
    ],
)
def test_an_assignment_scales_the_stages_of_a_recipe(assignments: tuple[str, ...], expected: list[int]) -> None:
    assert stage_epochs(assignments=assignments) == expected


@pytest.mark.parametrize(
    ("total", "expected", "words"),
    [
        (10, [1, 9], "10 epochs: head 1, fine-tune 9"),
        (1, [1, 1], "2 epochs: head 1, fine-tune 1"),
    ],
)
def test_a_stage_that_is_solved_takes_one_epoch_of_the_total(total: int, expected: list[int], words: str) -> None:
    assignments = (f"train.epochs={total}",)
    assert stage_epochs(assignments=assignments, recipe="transfer") == expected
    train = resolve_config(recipes.load("transfer"), assignments=assignments).train
    assert describe_epochs(train).startswith(words)


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        ((), [12, 2]),
        (("train.epochs=28",), [24, 4]),
        (("train.epochs=5",), [4, 1]),
        (("train.epochs=10", "train.stages.0.epochs=8"), [8, 2]),
        (("train.epochs=10", "train.stages.0.solver=logistic"), [1, 9]),  # whatever is said of `auto`
    ],
)
def test_a_stage_that_cannot_be_solved_is_scaled(assignments: tuple[str, ...], expected: list[int]) -> None:
    stages = resolve_config(recipes.load("transfer"), assignments=assignments, unsolved=[0]).train.stages
    assert [stage.epochs for stage in stages] == expected


def test_a_file_scales_the_recipe_below_it_and_nothing_scales_its_own_stages() -> None:
    own = {"train": {"epochs": 7, "stages": [{"name": "a", "epochs": 3}, {"name": "b"}]}}
    assert stage_epochs({"train": {"epochs": 7}}) == [6, 1]
    assert stage_epochs(own) == [3, None], "a stage without its own number takes train.epochs, as before"
    assert stage_epochs(own, assignments=("train.epochs=4",)) == [3, None]
    assert stage_epochs({"train": {"epochs": 28}}, assignments=("train.epochs=7",)) == [6, 1]


def test_a_resolved_configuration_reads_back_as_it_is() -> None:
    from sightline.config import to_dict

    config_value = resolve_config(recipes.load("transfer"), assignments=["train.epochs=5"])
    assert resolve_config(to_dict(config_value)) == config_value


@pytest.mark.parametrize("wrong", ["train.epochs=many", "train.epochs=-1", "train.stages.0.epochs=true"])
def test_an_invalid_number_of_epochs_is_named(wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
        stage_epochs(assignments=("train.epochs=3", wrong))


def test_stages_that_are_scaled_keep_the_total_beside_them() -> None:
    config_value = resolve_config(recipes.load("transfer"), assignments=["train.epochs=5"])
    assert config_value.train.epochs == 5


def test_the_words_name_every_stage() -> None:
    train = TrainConfig(epochs=3, stages=(StageConfig("head", epochs=5), StageConfig("all")))
    assert describe_epochs(train) == "8 epochs: head 5, all 3"
