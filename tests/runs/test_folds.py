"""What `train` says of folds before it trains; tests/cli/test_folds.py trains with them."""

from __future__ import annotations

import pytest

from sightline.config import resolve_config
from sightline.data.types import Split
from sightline.runs.folds import mention_folds
from strategies import image_record


@pytest.mark.parametrize(
    ("settings", "split", "few", "count"),
    [
        ([], None, 40, 1),
        ([], None, 100, 0),
        ([], "train", 40, 0),
        (["split.folds=5"], None, 40, 0),
        (["model.task=multi_label"], None, 40, 1),
        (["train.time_limit=10m"], None, 40, 0),
    ],
)
def test_folds_are_mentioned_where_they_help_and_can_be_used(
    settings: list[str], split: Split | None, few: int, count: int
) -> None:
    images = [image_record("cat", i, split) for i in range(few)] + [image_record("dog", -i, split) for i in range(120)]
    notes = mention_folds(images, resolve_config(assignments=settings))
    assert len(notes) == count
    assert all(note.startswith("class 'cat' has only 40 images: with --folds 5") for note in notes)
