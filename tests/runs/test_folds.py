"""What `train` says of folds before it trains; tests/cli/test_folds.py trains with them."""

from __future__ import annotations

import pytest

from sightline.config import resolve_config
from sightline.data.types import Split
from sightline.runs.folds import mention_folds
from strategies import image_record


@pytest.mark.parametrize(
    ("settings", "splits", "few", "note"),
    [
        ([], (None,), 40, "class 'cat' has only 40 images: with --folds 5, all images are used both for the"),
        ([], (None,), 100, ""),
        ([], (None,), 1, ""),
        ([], ("train",), 40, "class 'cat' has only 40 images: with --folds 5"),
        ([], (None, "test"), 80, "class 'cat' has only 40 images outside the test split: with --folds 5, all"),
        ([], ("train", "test"), 200, ""),
        ([], ("train", "validation"), 40, ""),
        (["split.folds=5"], (None,), 40, ""),
        (["model.task=multi_label"], (None,), 40, "class 'cat' has only 40 images: with --folds 5"),
        (["train.time_limit=10m"], (None,), 40, ""),
    ],
)
def test_folds_are_mentioned_where_they_help_and_can_be_used(
    settings: list[str], splits: tuple[Split | None, ...], few: int, note: str
) -> None:
    """The images are divided evenly among `splits`."""
    images = [
        image_record(label, f"{label}{i}", splits[i % len(splits)])
        for label, count in (("cat", few), ("dog", 240))
        for i in range(count)
    ]
    notes = mention_folds(images, resolve_config(assignments=settings))
    assert len(notes) == bool(note)
    assert all(text.startswith(note) for text in notes)
