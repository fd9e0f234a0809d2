"""Group suggestions: found in names, folders and columns, and only where there are groups."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sightline.config.groups import group_rule
from sightline.data.candidates import candidates, findings
from sightline.data.grouping import groups
from sightline.records import Index, Part, Picture

RUNNING = r"pattern:([^/]+?)([ ._-]+\d+)?\.\w+$"
AUGMENTED = r"pattern:([^/]+?)(\.rf\.\w+)?\.\w+$"


def images(name: Callable[[int], str], count: int = 60, part: Part | None = None, **extra: str) -> list[Picture]:
    """Images of two classes in turns of five; ``{}`` in a column's value stands for the number of the turn."""
    return [
        Picture(f"{label}/{name(i)}", str(i), label, part, 8, 8, extra={k: v.format(i // 5) for k, v in extra.items()})
        for i in range(count)
        for label in [("cat", "dog")[i // 5 % 2]]
    ]


@pytest.mark.parametrize(
    ("many", "setting"),
    [
        (images(lambda i: f"patient{i // 5}_{i:03}.png"), RUNNING),
        (images(lambda i: f"{i // 5} (b)-{i}.png"), RUNNING),
        (images(lambda i: f"v_dive_g{i // 5:02} frame {i % 5}.jpg"), RUNNING),
        (images(lambda i: f"img{i // 5}_jpg.rf.{i * 7919:032x}.jpg"), AUGMENTED),
        (images(lambda i: f"scene {i // 5}/{i}.png"), "folder"),
        (images(lambda i: f"{i}.png", patient="p{}"), "column:patient"),
        (images(lambda i: f"{i}.png", origin="clinic-{}"), "column:origin"),
        (images(lambda i: f"{i}.png", subject_id="{}"), "column:subject_id"),
    ],
)
def test_a_candidate_is_found_and_its_setting_works(many: list[Picture], setting: str) -> None:
    (candidate,) = candidates(many)
    assert candidate.setting == setting
    names = groups(many, group_rule(setting))
    assert names is not None
    assert [len({*names[at : at + 5]}) for at in range(0, 60, 5)] == [1] * 12
    assert len({*names}) == 12
    assert candidate.reason == "12 groups of up to 5 images"


@pytest.mark.parametrize(
    "many",
    [
        [],
        images(lambda i: f"{i}.png"),
        images(lambda i: f"IMG_{i:04}.png"),
        images(lambda i: f"{('cat', 'dog')[i // 5 % 2]}.{i}.png"),
        images(lambda i: f"{('tabby', 'tomcat', 'persian', 'siamese', 'manx', 'sphynx')[i % 6]}_s_{i:06}.webp"),
        images(lambda i: f"n0{i // 5 % 2}_{i}.JPEG"),
        images(lambda i: f"{i * 7919:010x}_{i * 104729:08x}.jpg"),
        images(lambda i: f"{i}.png", sex="{}"[:0] + "f", age="{}"),
        images(lambda i: f"{i}.png", patient="p1"),
        images(lambda i: f"patient{i}_1.png"),
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
    ],
)
def test_no_candidate_where_there_are_no_groups(many: list[Picture]) -> None:
    assert candidates(many) == []


def test_groups_across_stated_splits_are_counted() -> None:
    many = [*images(lambda i: f"p{i // 5}_{i}.png", part="train"), *images(lambda i: f"p{i // 5}_9{i}.png", 15, "test")]
    (finding,) = findings(Index("x", tuple(many), (), 0, lambda _: b""))
    assert finding.paths == (f"split.group={RUNNING}",)
    assert finding.reasons == ("12 groups of up to 10 images, 3 of which span more than one given split",)
    assert f"--set 'split.group={RUNNING}'." in finding.advice
