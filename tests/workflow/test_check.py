"""What `train` says of the data: each error once, and of near duplicates in several splits an advice that helps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pictures import png, write
from sightline.config import RunConfig, SplitConfig
from sightline.data.dataset import Dataset
from sightline.data.index import index
from sightline.data.leakage import Leak
from sightline.data.membership import ImageRow
from sightline.errors import DataError
from sightline.records import Part, Picture
from sightline.watch import Watcher
from sightline.workflow import check, training

STATED: dict[str, Part] = {"a": "train", "b": "train", "c": "test"}


def told(splits: dict[str, Part], stated: dict[str, Part] | None, *pairs: str, group: str = "none") -> list[str]:
    """The lines for near duplicates among the images a, b and c, which lie in `splits`."""
    pictures = tuple(Picture(p, p, "ant", stated[p] if stated else None, 8, 8) for p in splits)
    data = Dataset(
        "x", ("ant", "bee"), pictures, tuple(splits.values()), np.zeros(3, np.int32), np.zeros((3, 8, 8, 3), np.uint8),
        np.arange(3), (), 0, (), cache_hit=False,
    )  # fmt: skip
    leaks = [Leak("near", tuple(ImageRow(p, p, "ant", splits[p]) for p in pair)) for pair in pairs]
    return list(check.leakage(leaks, data, RunConfig(split=SplitConfig(group=group))))


CUT: dict[str, Part] = {"a": "train", "b": "validation", "c": "test"}
KEEP = "--set split.group=near keeps each group in one split"
DROP = "`sightline doctor --fix` proposes training images to drop"


@pytest.mark.parametrize(
    ("stated", "pairs", "group", "advice"),
    [
        (None, ["ab"], "none", f"; {KEEP}"),
        (None, ["ab"], "column:patient", ""),
        (STATED, ["ab"], "none", f"; {KEEP}"),
        (STATED, ["ac"], "none", f"; {DROP}"),
        (STATED, ["ac"], "near", f"; {DROP}"),
        (STATED, ["ab", "ac"], "none", f"; {KEEP} where the source defines none"),
    ],
)
def test_the_advice_is_one_that_helps(
    stated: dict[str, Part] | None, pairs: list[str], group: str, advice: str
) -> None:
    (line,) = told(CUT, stated, *pairs, group=group)
    many = "1 group of near duplicates is" if len(pairs) == 1 else "2 groups of near duplicates are"
    assert line == f"{many} in more than one split (see leakage.jsonl){advice}"


def test_nothing_is_said_without_near_duplicates() -> None:
    assert told(CUT, None) == []


class Heard(Watcher):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_the_error_that_stops_is_said_once(tmp_path: Path) -> None:
    files = {f"{split}/{i}.png": png(i + 9 * (split == "test")) for split in ("train", "test") for i in range(3)}
    heard = Heard()
    with pytest.raises(DataError, match=r"^split-folders: 2 folders are read as classes but look like splits"):
        check.before(index(write(tmp_path, files)), RunConfig(), heard)
    assert [line.split(": ")[1] for line in heard.lines[:-1]] == ["small-classes"]


FOLDERS = RunConfig(split=SplitConfig(group="folder"))


def test_folders_inside_classes_are_groups_where_the_settings_say_so(tmp_path: Path) -> None:
    names = [(label, clip) for label in ("cat", "dog") for clip in ("clip0", "clip1", "clip2")]
    files = {f"{label}/{clip}/{i}.png": png(9 * n + i) for n, (label, clip) in enumerate(names) for i in range(3)}
    found = index(write(tmp_path, files))
    with pytest.raises(DataError, match=r"^split-folders: 2 folders"):
        check.before(found, RunConfig(), Heard())
    heard = Heard()
    assert check.before(found, FOLDERS, heard)[0] is found
    assert not any("split-folders" in line for line in heard.lines)


def test_classes_named_as_splits_are_no_groups(tmp_path: Path) -> None:
    splits = ("trian", "tset")
    files = {f"{split}/{a}/{i}.png": png(9 * n + i) for n, split in enumerate(splits) for a in "xy" for i in range(3)}
    with pytest.raises(DataError, match=r"^split-folders: 2 folders"):
        check.before(index(write(tmp_path, files)), FOLDERS, Heard())


def test_the_first_line_has_separators_in_its_numbers() -> None:
    count = 1234
    split: Part = "train"
    pictures = tuple(Picture(f"{i}", f"{i}", "ant", None, 8, 8) for i in range(count))
    data = Dataset(
        "x", ("ant", "bee"), pictures, (split,) * count, np.zeros(count, np.int32),
        np.zeros((1, 8, 8, 3), np.uint8), np.zeros(count, np.int64), (), 0, (), cache_hit=False,
    )  # fmt: skip
    assert training._data_notes(data)[0] == "x: 2 classes, 1,234 train, 0 validation, 0 test"
