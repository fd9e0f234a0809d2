"""What `train` decides by the images: the range of sample values, by those that train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from high_bit_depth import png_16
from recording import RecordingCallback
from sightline.config import RunConfig, resolve_config
from sightline.data.indexing import build_index
from sightline.data.types import Index
from sightline.runs.facts import DataFacts, Machine
from sightline.runs.resolve import apply_steps, inspection_preprocess
from sightline.runs.steps import choose_value_range
from sightline.tasks.protocol import find_task
from synthetic_images import write_files

HOW = "the values of 8 images span at least half of that range"


def png_with_max(number: int, top: int) -> bytes:
    return png_16(np.random.default_rng(number).integers(0, top + 1, (24, 24)).astype(np.uint16))


@pytest.fixture
def scanned(tmp_path: Path) -> Index:
    """12 bits in training and validation, 16 in the test split."""
    tops = {"train": 4095, "validation": 4095, "test": 65535}
    files = {
        f"{split}/{label}/{i}.png": png_with_max(100 * s + 10 * k + i, top)
        for s, (split, top) in enumerate(tops.items())
        for k, label in enumerate("ab")
        for i in range(4)
    }
    return build_index(write_files(tmp_path, files))


def resolve_range(index: Index, *settings: str) -> tuple[RunConfig, list[str]]:
    callback = RecordingCallback()
    config = resolve_config(assignments=settings)
    facts = DataFacts.from_index(index, find_task("single_label"))
    return apply_steps(config, [choose_value_range], facts, Machine(), callback), callback.lines


def test_images_that_do_not_train_decide_nothing(scanned: Index) -> None:
    config, lines = resolve_range(scanned)
    assert config.input.value_range == (0, 4095)
    assert lines == [
        f"24 images have more than 8 bits per sample, read with 0 as black and 4095 as white ({HOW})",
    ]
    looked, values = inspection_preprocess(config.input, scanned)
    assert looked.value_range == values.limits == (0, 4095)


@pytest.mark.parametrize("group", ["near_duplicates", "pattern:(?P<group>[0-9]+)"])
def test_groups_change_nothing_where_splits_are_stated(scanned: Index, group: str) -> None:
    assert resolve_range(scanned, f"split.group={group}")[0].input.value_range == (0, 4095)


@pytest.mark.parametrize(("text", "expected"), [("[5, 6]", (5.0, 6.0)), ("full", "full")])
def test_what_is_set_stands(scanned: Index, text: str, expected: Any) -> None:
    config, lines = resolve_range(scanned, f"input.value_range={text}")
    assert (config.input.value_range, lines) == (expected, [])
