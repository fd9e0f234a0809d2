"""What a request says about settings that stages take over, or do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sightline.config import recipes
from sightline.errors import UsageError
from sightline.runs.train_request import TrainRequest


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        ((), []),
        (("train.epochs=6",), ["train.epochs is 6, and the stages have 6 epochs: head 5, fine-tune 1"]),
        (("train.epochs=1",), ["train.epochs is 1, and the stages have 2 epochs: head 1, fine-tune 1"]),
        (
            ("train.optimizer.learning_rate=0.1",),
            ["train.optimizer.learning_rate has no effect: every stage overrides it; set train.stages.0.learning_rate"],
        ),
        (("train.optimizer.learning_rate=0.1", "train.stages.0.learning_rate=unset"), []),
        (("train.batch_size=4",), []),  # no stage has its own
    ],
)
def test_what_became_of_a_setting_is_said(assignments: tuple[str, ...], expected: list[str]) -> None:
    request = TrainRequest.create("somewhere", "transfer-mobilenetv2", None, assignments)
    notes = list(request.override_notes(request.merge_layers()))
    assert len(notes) == len(expected)
    for note, beginning in zip(notes, expected, strict=True):
        assert note.startswith(beginning)


def test_settings_of_steps_have_no_effect_on_a_solved_stage() -> None:
    assignments = ("train.optimizer.learning_rate=0.1", "train.stages.0.learning_rate=0.1")
    request = TrainRequest.create("somewhere", "transfer", None, assignments)
    config = request.merge_layers()
    assert [stage.is_solved for stage in config.train.stages] == [True, False]
    general, own = request.override_notes(config)
    assert general.endswith("has no effect: every stage overrides it; set train.stages.1.learning_rate etc. instead")
    assert own == (
        "train.stages.0.learning_rate has no effect: the stage is solved, not trained by steps; "
        "--set train.stages.0.solver=gradient trains it"
    )
    solved = replace(config, train=replace(config.train, stages=config.train.stages[:1]))
    assert next(request.override_notes(solved)).endswith("has no effect: every stage is solved, not trained by steps")


def test_a_file_is_the_users_and_a_recipe_is_not(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("train.epochs = 7\n")
    request = TrainRequest.create("somewhere", "transfer-mobilenetv2", tmp_path / "mine.toml", ())
    assert request.is_set_by_user("train.epochs")
    assert not request.is_set_by_user("train.batch_size"), "the recipe's own"
    assert [stage.epochs for stage in request.merge_layers().train.stages] == [6, 1]
    quick = TrainRequest.create("somewhere", "quick", tmp_path / "mine.toml", ())
    assert not list(quick.override_notes(quick.merge_layers())), "there are no stages to speak of"


def test_a_file_may_name_its_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('recipe = "cifar10-simple"\n[train]\nepochs = 3\n')
    for recipe in ("auto", "cifar10-simple"):
        request = TrainRequest.create("somewhere", recipe, file, ())
        config = request.merge_layers()
        assert (request.recipe, config.recipe, config.model.name) == (*["cifar10-simple"] * 3,)
    with pytest.raises(
        UsageError, match=r"for the recipe cifar10-simple, and --recipe is quick: leave one of them out"
    ):
        TrainRequest.create("somewhere", "quick", file, ())
    file.write_text('recipe = "quik"\n')
    with pytest.raises(UsageError, match=r"There is no recipe 'quik'\. Did you mean 'quick'\?"):
        TrainRequest.create("somewhere", "auto", file, ())
    file.write_text('recipe = "auto"\n')
    assert TrainRequest.create("somewhere", "quick", file, ()).merge_layers().recipe == "quick"


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_trains_several_labels_unless_it_is_for_masks(name: str) -> None:
    request = TrainRequest.create("somewhere", name, None, ["model.task=multi_label"])
    if recipes.load(name).get("model", {}).get("task") == "segmentation":
        with pytest.raises(UsageError, match="masks"):
            request.merge_layers()
    else:
        assert request.merge_layers().model.head == "softmax", "each class has a sigmoid whatever the recipe says"
        own_head = TrainRequest.create("somewhere", name, None, ["model.task=multi_label", "model.head=sigmoid"])
        with pytest.raises(UsageError, match=r"model\.head is sigmoid"):
            own_head.merge_layers()


@pytest.mark.parametrize(
    ("source", "recorded"),
    [
        ("photos/", "photos"),
        ("./photos", "photos"),
        ("beans:24@32", "beans:24@32"),
        ("s3://bucket/a/", "s3://bucket/a/"),
    ],
)
def test_a_folder_is_recorded_in_one_spelling(source: str, recorded: str) -> None:
    assert TrainRequest.create(source, "quick", None, ()).sources == (recorded,)
