"""Which picture trains, which validates, which tests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sightline.config import SplitConfig
from sightline.randomness import derive
from sightline.records import Part, Picture


@dataclass(frozen=True, slots=True)
class Split:
    """One part per picture, in their order, and what had to be corrected, in words."""

    parts: tuple[Part, ...]
    notes: tuple[str, ...]


def split(pictures: Sequence[Picture], config: SplitConfig, seed: int) -> Split:
    """Divide pictures into train, validation and test.

    Parts that the source states are kept; without a validation part, a share of the training part becomes it. With
    ``mode="hash"`` a picture's part depends on its content and the seed alone: identical pictures lie on one side,
    and adding pictures never moves old ones. With ``mode="stratified"`` the shares are exact in each class.

    The one correction: no class is left without training pictures, nor without validation pictures where it has two.
    """
    stated = any(p.part is not None for p in pictures)
    test_share = config.test if config.test is not None else (0.0 if stated else 0.15)
    parts: list[Part] = [p.part or "train" for p in pictures]
    has_validation = "validation" in parts
    free = [i for i, part in enumerate(parts) if part == "train"]
    if "test" in parts:
        test_share = 0.0
    validation_share = 0.0 if has_validation else config.validation
    position = {i: _position(seed, pictures[i].sha256) for i in free}
    groups = _by_class(pictures, free)
    if config.mode == "stratified":
        for members in groups.values():
            _cut_exactly(members, position, parts, validation_share, test_share)
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


def _cut_exactly(
    members: list[int], position: dict[int, float], parts: list[Part], validation: float, test: float
) -> None:
    order = sorted(members, key=lambda i: (position[i], i))
    tests, validations = round(len(order) * test), round(len(order) * validation)
    trains = max(len(order) - tests - validations, 0)
    for rank, i in enumerate(order):
        parts[i] = "train" if rank < trains else "validation" if rank < trains + validations else "test"


def _correct(
    groups: dict[str, list[int]], position: dict[int, float], parts: list[Part], *, want_validation: bool
) -> list[str]:
    notes = []
    for label, members in groups.items():
        order = sorted(members, key=lambda i: (position[i], i))
        here = {part: [i for i in order if parts[i] == part] for part in ("train", "validation", "test")}
        if not here["train"]:
            moved = order[0]
            here[parts[moved]].remove(moved)
            parts[moved] = "train"
            here["train"].append(moved)
            notes.append(f"class {label!r} had no training picture by chance: one was moved there")
        if want_validation and not here["validation"]:
            spare = here["train"][1:] or here["test"]
            if spare:
                parts[spare[-1] if spare is not here["test"] else spare[0]] = "validation"
                notes.append(f"class {label!r} had no validation picture by chance: one was moved there")
            else:
                notes.append(f"class {label!r} has a single picture: none is left for validation")
    return notes
