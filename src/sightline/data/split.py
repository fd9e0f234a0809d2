"""Which picture trains, which validates, which tests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sightline.config import SplitConfig
from sightline.errors import ConfigError
from sightline.randomness import derive
from sightline.records import PARTS, Part, Picture


@dataclass(frozen=True, slots=True)
class Split:
    """One part per picture, in their order, and what had to be corrected, in words."""

    parts: tuple[Part, ...]
    notes: tuple[str, ...]


def split(pictures: Sequence[Picture], config: SplitConfig, seed: int, near: Mapping[str, str] | None = None) -> Split:
    """Divide pictures into train, validation and test.

    Parts that the source states are kept; without a validation part, a share of the training part becomes it. With
    ``mode="hash"`` a picture's part depends on its content and the seed alone: identical pictures lie on one side,
    and adding pictures never moves old ones. With ``mode="stratified"`` the shares are exact in each class.

    `near` names, for each content, the smallest one in its group of near duplicates: the part of that one is the part
    of the whole group, in either mode; the shares of the stratified mode are then exact but for that.

    The one correction: no class is left without training pictures, nor without validation pictures where it has two.
    Raises `ConfigError` where the shares leave nothing to train on.
    """
    stated = any(p.part is not None for p in pictures)
    test_share = config.test if config.test is not None else (0.0 if stated else 0.15)
    parts: list[Part] = [p.part or "train" for p in pictures]
    has_validation = "validation" in parts
    free = [i for i, part in enumerate(parts) if part == "train"]
    if "test" in parts:
        test_share = 0.0
    validation_share = 0.0 if has_validation else config.validation
    if validation_share + test_share >= 1:
        raise ConfigError(
            f"split.validation {validation_share:g} and split.test {test_share:g} leave no picture to train on: "
            "their sum must stay below 1."
        )
    leader = {i: (near or {}).get(pictures[i].sha256, pictures[i].sha256) for i in free}
    position = {i: _position(seed, leader[i]) for i in free}
    groups = _by_class(pictures, free)
    if config.mode == "stratified":
        for members in groups.values():
            order = sorted(members, key=lambda i: (position[i], pictures[i].sha256, i))  # a group shares a position
            _cut_exactly(order, parts, validation_share, test_share)
        if near is not None:
            _gather(pictures, leader, parts)
    else:
        for i in free:
            parts[i] = _part_at(position[i], validation_share, test_share)
    notes = _correct(groups, position, parts, want_validation=validation_share > 0)
    return Split(tuple(parts), tuple(notes))


def _position(seed: int, sha256: str) -> float:
    return float(derive(seed, "split", sha256)) / 2.0**64


def _part_at(position: float, validation: float, test: float) -> Part:
    if position < 1 - validation - test:
        return "train"
    return "validation" if position < 1 - test else "test"


def _by_class(pictures: Sequence[Picture], members: Sequence[int]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for i in members:
        groups[pictures[i].label].append(i)
    return dict(sorted(groups.items()))


def _cut_exactly(order: list[int], parts: list[Part], validation: float, test: float) -> None:
    tests, validations = round(len(order) * test), round(len(order) * validation)
    trains = max(len(order) - tests - validations, 0)
    for rank, i in enumerate(order):
        parts[i] = "train" if rank < trains else "validation" if rank < trains + validations else "test"


def _gather(pictures: Sequence[Picture], leader: Mapping[int, str], parts: list[Part]) -> None:
    """Give every group one part: that of its least content, of whose copies the first by class decides."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, name in leader.items():
        groups[name].append(i)
    for members in groups.values():
        first = min(members, key=lambda i: (pictures[i].sha256, pictures[i].label, PARTS.index(parts[i])))
        for i in members:
            parts[i] = parts[first]


def _correct(
    groups: dict[str, list[int]], position: dict[int, float], parts: list[Part], *, want_validation: bool
) -> list[str]:
    """Move what is missing; all copies of a picture move with it, whatever their class."""
    notes = []
    copies: dict[float, list[int]] = defaultdict(list)
    for i, at in position.items():
        copies[at].append(i)
    group_of = {i: members for members in groups.values() for i in members}

    def move(picture: int, part: Part) -> None:
        for i in copies[position[picture]]:
            parts[i] = part

    def needed(picture: int) -> bool:  # for training, by one of the classes that its copies bear
        at = position[picture]
        return not all(any(parts[j] == "train" and position[j] != at for j in group_of[i]) for i in copies[at])

    for label, members in groups.items():
        if all(parts[i] != "train" for i in members):
            move(min(members, key=position.__getitem__), "train")
            notes.append(f"class {label!r} had no training picture by chance: one was moved there")
    for label, members in groups.items():
        if not want_validation or any(parts[i] == "validation" for i in members):
            continue
        order = sorted(members, key=position.__getitem__)
        trains, tests = ([i for i in order if parts[i] == part] for part in ("train", "test"))
        spare = next((i for i in [*reversed(trains), *tests] if not needed(i)), None)
        if spare is not None:
            move(spare, "validation")
            notes.append(f"class {label!r} had no validation picture by chance: one was moved there")
        else:
            notes.append(f"class {label!r} has no second, different picture: none is left for validation")
    return notes
