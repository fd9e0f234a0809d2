"""Suggest `split.group` settings where names, folders or columns suggest images of one patient, scene or specimen."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sightline.config.split_groups import parse_group_rule
from sightline.data.checks.finding import Finding, image_finding
from sightline.data.grouping import assign_groups, folder_below_class
from sightline.data.sources.filenames import split_path
from sightline.data.types import ImageRecord, Index
from sightline.errors import ConfigError, plural

# a file name with a group number followed by a running number
RUNNING_NAME = re.compile(r"[^/]*\d[^/]*[ ._-](\d+)\.\w+$")
RUNNING_SETTING = r"pattern:([^/]+?)([ ._-]+\d+)?\.\w+$"
AUGMENTED_NAME = re.compile(r"([^/]+)\.rf\.\w+\.\w+$")  # names of Roboflow's augmented copies
AUGMENTED_SETTING = r"pattern:([^/]+?)(\.rf\.\w+)?\.\w+$"
GROUP_COLUMN_NAME = re.compile(
    r"patient|subject|person|participant|individual|animal|case|study|scene|video|clip|sequence|series|session|visit|"
    r"specimen|sample|slide|plate|well|donor|group|site|location|camera|burst",
    re.IGNORECASE,
)
MIN_NAMED_FRACTION = 0.9  # least fraction of images with such a name
MIN_GROUPED_FRACTION = 0.5  # least fraction of images that share a group with another image
MAX_GROUP_FRACTION = 0.5  # greatest fraction of images in one group
MIN_CLASS_GROUPS = 3  # least number of groups in the median class: one per split
MAX_MEAN_GROUP_SIZE = 50  # greatest mean group size for columns with an uninformative name


@dataclass(frozen=True, slots=True)
class GroupCandidate:
    """A value of ``split.group``, the sizes of its groups by name, and how many groups cross the given splits."""

    setting: str
    sizes: dict[str, int]
    num_across_splits: int

    @property
    def description(self) -> str:
        """A description of the groups that the setting would keep together."""
        sizes = [size for size in self.sizes.values() if size > 1]
        text = f"{plural(len(self.sizes), 'group')} of up to {max(sizes)} images"
        return text + (
            f", {self.num_across_splits:,} of which span more than one given split" if self.num_across_splits else ""
        )


def find_group_candidates(images: Sequence[ImageRecord]) -> list[GroupCandidate]:
    """Return the settings that would keep related images together, most certain first."""
    candidates = []
    for setting in _propose_settings(images):
        try:
            names = assign_groups(images, parse_group_rule(setting)) or []
        except ConfigError:  # the rule does not match every image
            continue
        if _is_plausible(images, names):
            sizes = dict(Counter(filter(None, names)))
            candidates.append(GroupCandidate(setting, sizes, _count_across_splits(images, names)))
    return candidates


def find_group_findings(index: Index) -> list[Finding]:
    """Return a finding if the images seem to come in groups."""
    suggestions = find_group_candidates(index.images)
    return image_finding(
        "group-candidates", "warning",
        ("setting would keep together images that seem related",
         "settings would keep together images that seem related"),
        "Images of one patient, scene, video or specimen in several splits make metrics too optimistic. If these "
        "are such images, train with --set " + (f"'split.group={suggestions[0].setting}'" if suggestions else "") + ".",
        [(f"split.group={candidate.setting}", candidate.description) for candidate in suggestions],
    )  # fmt: skip


def _propose_settings(images: Sequence[ImageRecord]) -> Iterator[str]:
    """Yield the settings worth trying."""
    for column in {name: None for p in images for name in p.extra}:
        sizes = Counter(filter(None, (p.extra.get(column, "").strip() for p in images)))
        informative = len(sizes) >= len(images) / MAX_MEAN_GROUP_SIZE and not all(_is_number(name) for name in sizes)
        if GROUP_COLUMN_NAME.search(column) or informative:
            yield f"column:{column}"
    if any(len(split_path(folder_below_class(p))) < len(split_path(p.path)) - 1 for p in images):
        yield "folder"  # some images are in subfolders of their class folder
    if sum(AUGMENTED_NAME.search(p.path) is not None for p in images) >= MIN_GROUPED_FRACTION * len(images):
        yield AUGMENTED_SETTING
    else:
        numbers = [match[1] for p in images if (match := RUNNING_NAME.search(p.path))]
        if len(numbers) >= MIN_NAMED_FRACTION * len(images) and len(set(numbers)) > 1:  # not a size, as in 12_100.jpg
            yield RUNNING_SETTING


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_plausible(images: Sequence[ImageRecord], names: Sequence[str]) -> bool:
    """Return whether most images share a group with others and most classes have enough groups to be split."""
    sizes = Counter(filter(None, names))
    shared = sum(size for size in sizes.values() if size > 1)
    is_shared = shared >= MIN_GROUPED_FRACTION * len(images)
    if not sizes or not is_shared or max(sizes.values()) > MAX_GROUP_FRACTION * len(images):
        return False
    by_class: dict[str, set[str]] = defaultdict(set)
    for p, name in zip(images, names, strict=True):
        by_class[p.label].add(name)
    counts = sorted(len(groups - {""}) for groups in by_class.values())
    return counts[len(counts) // 2] >= MIN_CLASS_GROUPS


def _count_across_splits(images: Sequence[ImageRecord], names: Sequence[str]) -> int:
    splits: dict[str, set[str | None]] = defaultdict(set)
    for p, name in zip(images, names, strict=True):
        if name:
            splits[name].add(p.split)
    return sum(len(splits_of_group) > 1 for splits_of_group in splits.values())
