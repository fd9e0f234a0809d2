"""What `train` says of the data: each error once, and of near duplicates in several splits an advice that helps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recording import RecordingCallback
from sightline.config import RunConfig, SplitConfig
from sightline.data.checks.leakage import Leak
from sightline.data.dataset import DecodedDataset
from sightline.data.indexing import build_index
from sightline.data.recorded_images import ImageRow
from sightline.data.types import ImageRecord, Split
from sightline.errors import DataError
from sightline.runs import pipeline, preflight
from synthetic_images import encode_png, write_files

STATED: dict[str, Split] = {"a": "train", "b": "train", "c": "test"}


def leakage_lines(
    splits: dict[str, Split], source_splits: dict[str, Split] | None, *pairs: str, group: str = "none"
) -> list[str]:
    """The lines for near duplicates among the images a, b and c, which lie in `splits`."""
    images = tuple(ImageRecord(p, p, "ant", source_splits[p] if source_splits else None, 8, 8) for p in splits)
    data = DecodedDataset(
        "x", ("ant", "bee"), images, tuple(splits.values()), np.zeros(3, np.int32), np.zeros((3, 8, 8, 3), np.uint8),
        np.arange(3), (), 0, (), cache_hit=False,
    )  # fmt: skip
    leaks = [Leak("near_duplicates", tuple(ImageRow(p, p, "ant", splits[p]) for p in pair)) for pair in pairs]
    return list(preflight.describe_leakage(leaks, data, RunConfig(split=SplitConfig(group=group))))


CUT: dict[str, Split] = {"a": "train", "b": "validation", "c": "test"}
KEEP = "--set split.group=near_duplicates keeps each group in one split"
DROP = "`sightline doctor --write-fixes` proposes training images to drop"


@pytest.mark.parametrize(
    ("source_splits", "pairs", "group", "advice"),
    [
        (None, ["ab"], "none", f"; {KEEP}"),
        (None, ["ab"], "column:patient", ""),
        (STATED, ["ab"], "none", f"; {KEEP}"),
        (STATED, ["ac"], "none", f"; {DROP}"),
        (STATED, ["ac"], "near_duplicates", f"; {DROP}"),
        (STATED, ["ab", "ac"], "none", f"; {KEEP} where the source defines none"),
    ],
)
def test_the_advice_is_one_that_helps(
    source_splits: dict[str, Split] | None, pairs: list[str], group: str, advice: str
) -> None:
    (line,) = leakage_lines(CUT, source_splits, *pairs, group=group)
    many = "1 group of near duplicates is" if len(pairs) == 1 else "2 groups of near duplicates are"
    assert line == f"{many} in more than one split (see leakage.jsonl){advice}"


def test_nothing_is_said_without_near_duplicates() -> None:
    assert leakage_lines(CUT, None) == []


def test_the_error_that_stops_is_said_once(tmp_path: Path) -> None:
    files = {f"{split}/{i}.png": encode_png(i + 9 * (split == "test")) for split in ("train", "test") for i in range(3)}
    callback = RecordingCallback()
    with pytest.raises(DataError, match=r"^split-folders: 2 folders are read as classes but look like splits"):
        preflight.run_preflight_checks(build_index(write_files(tmp_path, files)), RunConfig(), callback)
    assert [line.split(": ")[1] for line in callback.lines[:-1]] == ["small-classes"]


FOLDERS = RunConfig(split=SplitConfig(group="folder"))


def test_folders_inside_classes_are_groups_where_the_settings_say_so(tmp_path: Path) -> None:
    names = [(label, clip) for label in ("cat", "dog") for clip in ("clip0", "clip1", "clip2")]
    files = {
        f"{label}/{clip}/{i}.png": encode_png(9 * n + i) for n, (label, clip) in enumerate(names) for i in range(3)
    }
    index = build_index(write_files(tmp_path, files))
    with pytest.raises(DataError, match=r"^split-folders: 2 folders"):
        preflight.run_preflight_checks(index, RunConfig(), RecordingCallback())
    callback = RecordingCallback()
    assert preflight.run_preflight_checks(index, FOLDERS, callback)[0] is index
    assert not any("split-folders" in line for line in callback.lines)


def test_classes_named_as_splits_are_not_groups(tmp_path: Path) -> None:
    splits = ("trian", "tset")
    files = {
        f"{split}/{a}/{i}.png": encode_png(9 * n + i) for n, split in enumerate(splits) for a in "xy" for i in range(3)
    }
    with pytest.raises(DataError, match=r"^split-folders: 2 folders"):
        preflight.run_preflight_checks(build_index(write_files(tmp_path, files)), FOLDERS, RecordingCallback())


def test_the_first_line_has_separators_in_its_numbers() -> None:
    count = 1234
    split: Split = "train"
    images = tuple(ImageRecord(f"{i}", f"{i}", "ant", None, 8, 8) for i in range(count))
    data = DecodedDataset(
        "x", ("ant", "bee"), images, (split,) * count, np.zeros(count, np.int32),
        np.zeros((1, 8, 8, 3), np.uint8), np.zeros(count, np.int64), (), 0, (), cache_hit=False,
    )  # fmt: skip
    assert pipeline._describe_data(data)[0] == "x: 2 classes, 1,234 train, 0 validation, 0 test"
    grouped = replace(data, groups=("part 1", "part 2") * (count // 2))
    assert pipeline._describe_data(grouped)[0] == "x: 2 classes, 1,234 train, 0 validation, 0 test (2 groups)"
