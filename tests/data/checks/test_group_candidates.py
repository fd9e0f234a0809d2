"""Group suggestions: found in names, folders and columns, and only where there are groups."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sightline.config.split_groups import parse_group_rule
from sightline.data.checks.group_candidates import find_group_candidates, find_group_findings
from sightline.data.grouping import assign_groups
from sightline.data.types import ImageRecord, Index, Split

RUNNING = r"pattern:([^/]+?)([ ._-]+\d+)?\.\w+$"
AUGMENTED = r"pattern:([^/]+?)(\.rf\.\w+)?\.\w+$"


def make_images(
    name: Callable[[int], str], count: int = 60, split: Split | None = None, **extra: str
) -> list[ImageRecord]:
    """Images of two classes in turns of five; ``{}`` in a column's value stands for the number of the turn."""
    return [
        ImageRecord(
            f"{label}/{name(i)}", str(i), label, split, 8, 8, extra={k: v.format(i // 5) for k, v in extra.items()}
        )
        for i in range(count)
        for label in [("cat", "dog")[i // 5 % 2]]
    ]


@pytest.mark.parametrize(
    ("images", "setting"),
    [
        (make_images(lambda i: f"patient{i // 5}_{i:03}.png"), RUNNING),
        (make_images(lambda i: f"{i // 5} (b)-{i}.png"), RUNNING),
        (make_images(lambda i: f"v_dive_g{i // 5:02} frame {i % 5}.jpg"), RUNNING),
        (make_images(lambda i: f"img{i // 5}_jpg.rf.{i * 7919:032x}.jpg"), AUGMENTED),
        (make_images(lambda i: f"scene {i // 5}/{i}.png"), "folder"),
        (make_images(lambda i: f"{i}.png", patient="p{}"), "column:patient"),
        (make_images(lambda i: f"{i}.png", origin="clinic-{}"), "column:origin"),
        (make_images(lambda i: f"{i}.png", subject_id="{}"), "column:subject_id"),
    ],
)
def test_a_candidate_is_found_and_its_setting_works(images: list[ImageRecord], setting: str) -> None:
    (candidate,) = find_group_candidates(images)
    assert candidate.setting == setting
    names = assign_groups(images, parse_group_rule(setting))
    assert names is not None
    assert [len({*names[at : at + 5]}) for at in range(0, 60, 5)] == [1] * 12
    assert len({*names}) == 12
    assert candidate.description == "12 groups of up to 5 images"


@pytest.mark.parametrize(
    "images",
    [
        [],
        make_images(lambda i: f"{i}.png"),
        make_images(lambda i: f"IMG_{i:04}.png"),
        make_images(lambda i: f"{('cat', 'dog')[i // 5 % 2]}.{i}.png"),
        make_images(lambda i: f"{('tabby', 'tomcat', 'persian', 'siamese', 'manx', 'sphynx')[i % 6]}_s_{i:06}.webp"),
        make_images(lambda i: f"n0{i // 5 % 2}_{i}.JPEG"),
        make_images(lambda i: f"{i * 7919:010x}_{i * 104729:08x}.jpg"),
        make_images(lambda i: f"{i}.png", sex="{}"[:0] + "f", age="{}"),
        make_images(lambda i: f"{i}.png", patient="p1"),
        make_images(lambda i: f"patient{i}_1.png"),
        make_images(lambda i: f"{i // 2}_100.jpg"),
    ],
    ids=[
        "none",
        "numbers",
        "camera",
        "kaggle",
        "search terms",
        "imagenet",
        "hashes",
        "attributes",
        "one patient",
        "one image each",
        "fruits of 100 pixels",
    ],
)
def test_no_candidate_where_there_are_no_groups(images: list[ImageRecord]) -> None:
    assert find_group_candidates(images) == []


def test_groups_across_stated_splits_are_counted() -> None:
    images = [
        *make_images(lambda i: f"p{i // 5}_{i}.png", split="train"),
        *make_images(lambda i: f"p{i // 5}_9{i}.png", 15, "test"),
    ]
    (finding,) = find_group_findings(Index("x", tuple(images), (), lambda _: b""))
    assert finding.paths == (f"split.group={RUNNING}",)
    assert finding.reasons == ("12 groups of up to 10 images, 3 of which span more than one given split",)
    assert f"--set 'split.group={RUNNING}'." in finding.advice
