"""Folds: every image is held out by one of them, with its group, wherever other images are."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, reject

from sightline.config import SplitConfig
from sightline.data.split import assign_splits
from sightline.data.types import ImageRecord
from sightline.errors import ConfigError
from strategies import image_record, image_records

FOLDS = 4


def list_held_out(images: list[ImageRecord], groups: list[str] | None = None, mode: str = "hash") -> list[list[int]]:
    """Return the positions of the images that each fold holds out."""
    configs = [SplitConfig(mode=mode, folds=FOLDS, fold=fold) for fold in range(FOLDS)]  # type: ignore[arg-type]
    assignments = [assign_splits(images, config, 0, groups) for config in configs]
    return [[i for i, split in enumerate(a.splits) if split == "test"] for a in assignments]


@pytest.mark.parametrize("mode", ["hash", "stratified"])
@given(images=image_records())
def test_every_image_is_held_out_once_with_its_copies(mode: str, images: list[ImageRecord]) -> None:
    try:
        held_out = list_held_out(images, mode=mode)
    except ConfigError:  # chance put all of the few images into one fold
        reject()
    assert sorted(i for positions in held_out for i in positions) == list(range(len(images)))
    for positions in held_out:
        contents = {images[i].sha256 for i in positions}
        assert contents.isdisjoint(images[i].sha256 for i in set(range(len(images))) - set(positions))


def test_groups_stay_together_and_added_images_move_no_other() -> None:
    images = [image_record("cat" if i % 2 else "dog", i) for i in range(120)]
    groups = [f"scene {i // 5}" for i in range(120)]
    held_out = list_held_out(images, groups)
    for positions in held_out:
        assert all(count == 5 for count in Counter(groups[i] for i in positions).values())
    more = [*images, *(image_record("cat", i) for i in range(200, 260))]
    others = list_held_out(more, [*groups, *(f"scene {i}" for i in range(200, 260))])
    assert [[i for i in positions if i < 120] for positions in others] == held_out


def test_stratified_folds_have_equal_numbers_of_each_class() -> None:
    images = [image_record("cat" if i % 4 else "dog", i) for i in range(200)]
    for positions in list_held_out(images, mode="stratified"):
        counts = Counter(images[i].label for i in positions)
        assert abs(counts["dog"] - 50 / FOLDS) <= 1
        assert abs(counts["cat"] - 150 / FOLDS) <= 1


def test_the_rest_is_trained_on_and_validated_and_the_final_model_takes_all() -> None:
    images = [image_record("cat" if i % 2 else "dog", i) for i in range(80)]
    images += [image_record("cat", i, "validation") for i in range(100, 110)]
    images += [image_record("dog", i, "test") for i in range(110, 130)]
    counts = Counter(assign_splits(images, SplitConfig(folds=FOLDS, fold=1), 0).splits)
    assert counts["validation"] > 0
    assert counts["train"] > counts["test"] - 20 > 0
    final = assign_splits(images, SplitConfig(folds=FOLDS), 0).splits
    assert final == ("train",) * 90 + ("test",) * 20, "only the test split of the source is kept"


def test_a_class_that_only_one_fold_has_is_named() -> None:
    images = [image_record("cat", i) for i in range(40)] + [image_record("dog", 99)]
    for fold in (0, 1):
        (note,) = assign_splits(images, SplitConfig(folds=FOLDS, fold=fold), 0).notes
        assert note == "class 'dog' is in one fold only, whose model does not learn it"
    assert not assign_splits(images, SplitConfig(folds=FOLDS), 0).notes


def test_folds_without_images_are_counted() -> None:
    images = [image_record("cat" if i % 2 else "dog", i) for i in range(40)]
    groups = [f"scene {i // 20}" for i in range(40)]
    config = SplitConfig(mode="stratified", folds=FOLDS)
    for fold in (0, 1):
        (note,) = assign_splits(images, replace(config, fold=fold), 0, groups).notes
        assert note.startswith(
            "2 of the 4 folds hold out no image, as there are only 2 groups: their models predict nothing"
        )
    assert not assign_splits(images, config, 0, groups).notes
    assert not assign_splits(images, replace(config, fold=0), 0).notes


def test_a_fold_that_holds_all_images_is_an_error() -> None:
    """Chance puts the two groups into one of two folds for every second seed."""
    images, groups = [image_record("cat" if i % 2 else "dog", i) for i in range(20)], ["a"] * 10 + ["b"] * 10
    config = SplitConfig(folds=2, fold=0)
    refused = []
    for seed in range(8):
        try:
            assert "train" in assign_splits(images, config, seed, groups).splits
        except ConfigError as error:
            refused.append(str(error))
    assert 0 < len(refused) < 8
    assert "2 groups, are in one of the 2 folds" in refused[0]
    assert "split.mode=stratified spreads them" in refused[0]
    splits = assign_splits(images, SplitConfig(mode="stratified", folds=2, fold=0), 0, groups).splits
    assert {"train", "test"} <= {*splits}
    with pytest.raises(ConfigError, match="at least two groups, so leave out --folds"):
        assign_splits(images, config, 0, ["a"] * 20)
