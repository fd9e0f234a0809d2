"""Suggest `split.group` settings where names, folders or columns suggest images of one patient, scene or specimen."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sightline.config.groups import group_rule
from sightline.data.finding import Finding, listed
from sightline.data.grouping import folder_below_class, groups, path_parts
from sightline.errors import ConfigError, plural
from sightline.records import Index, Picture

RUNNING = re.compile(r"[^/]*\d[^/]*[ ._-]\d+\.\w+$")  # a file name with a group number followed by a running number
RUNNING_SETTING = r"pattern:([^/]+?)([ ._-]+\d+)?\.\w+$"
AUGMENTED = re.compile(r"([^/]+)\.rf\.\w+\.\w+$")  # file names of Roboflow's augmented copies
AUGMENTED_SETTING = r"pattern:([^/]+?)(\.rf\.\w+)?\.\w+$"
TELLING = re.compile(
    r"patient|subject|person|participant|individual|animal|case|study|scene|video|clip|sequence|series|session|visit|"
    r"specimen|sample|slide|plate|well|donor|group|site|location|camera|burst",
    re.IGNORECASE,
)
NAMED = 0.9  # least fraction of images with such a name
TOGETHER = 0.5  # least fraction of images that share a group with another image
LARGEST = 0.5  # greatest fraction of images in one group
FEWEST = 3  # least number of groups in the median class: one per split
MOST = 50  # greatest mean group size for columns with an uninformative name


@dataclass(frozen=True, slots=True)
class Candidate:
    """A value of ``split.group``, the sizes of the groups it would form by name, and how many cross given splits."""

    setting: str
    sizes: dict[str, int]
    across: int

    @property
    def reason(self) -> str:
        """A description of the groups that the setting would keep together."""
        shared = [size for size in self.sizes.values() if size > 1]
        words = f"{plural(len(self.sizes), 'group')} of up to {max(shared)} images"
        return words + (f", {self.across:,} of which span more than one given split" if self.across else "")


def candidates(pictures: Sequence[Picture]) -> list[Candidate]:
    """Return the settings that would keep related images together, most certain first."""
    some = []
    for setting in _settings(pictures):
        try:
            names = groups(pictures, group_rule(setting)) or []
        except ConfigError:  # the rule does not match every image
            continue
        if _plausible(pictures, names):
            some.append(Candidate(setting, dict(Counter(filter(None, names))), _across(pictures, names)))
    return some


def findings(index: Index) -> list[Finding]:
    """Return a finding if the images seem to come in groups."""
    some = candidates(index.pictures)
    return listed(
        "group-candidates", "warning",
        ("setting would keep images together that seem related",
         "settings would keep images together that seem related"),
        "Images of one patient, scene, video or specimen in several splits make metrics too optimistic. If these "
        "are such images, train with --set " + (f"'split.group={some[0].setting}'" if some else "") + ".",
        [f"split.group={candidate.setting}" for candidate in some], [candidate.reason for candidate in some],
    )  # fmt: skip


def _settings(pictures: Sequence[Picture]) -> Iterator[str]:
    """Yield the settings worth trying."""
    for column in {name: None for p in pictures for name in p.extra}:
        sizes = Counter(filter(None, (p.extra.get(column, "").strip() for p in pictures)))
        many = len(sizes) >= len(pictures) / MOST and not all(_is_number(name) for name in sizes)
        if TELLING.search(column) or many:
            yield f"column:{column}"
    if any(len(path_parts(folder_below_class(p))) < len(path_parts(p.path)) - 1 for p in pictures):
        yield "folder"  # some images are in subfolders of their class folder
    if sum(AUGMENTED.search(p.path) is not None for p in pictures) >= TOGETHER * len(pictures):
        yield AUGMENTED_SETTING
    elif sum(RUNNING.search(p.path) is not None for p in pictures) >= NAMED * len(pictures):
        yield RUNNING_SETTING


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _plausible(pictures: Sequence[Picture], names: Sequence[str]) -> bool:
    """Return whether most images share a group with others and most classes have enough groups to be split."""
    sizes = Counter(filter(None, names))
    shared = sum(size for size in sizes.values() if size > 1)
    if not sizes or shared < TOGETHER * len(pictures) or max(sizes.values()) > LARGEST * len(pictures):
        return False
    by_class: dict[str, set[str]] = defaultdict(set)
    for p, name in zip(pictures, names, strict=True):
        by_class[p.label].add(name)
    return sorted(len(some - {""}) for some in by_class.values())[len(by_class) // 2] >= FEWEST


def _across(pictures: Sequence[Picture], names: Sequence[str]) -> int:
    sides: dict[str, set[str | None]] = defaultdict(set)
    for p, name in zip(pictures, names, strict=True):
        if name:
            sides[name].add(p.part)
    return sum(len(parts) > 1 for parts in sides.values())
