"""Assign images to the train, validation and test splits.

Images that must stay together (identical files, and images of one group) form a unit. The position of a unit, a number
in [0, 1) hashed from the seed and the unit's name, is compared with the split fractions, so its split depends on
nothing else, with one exception.

No rule that considers each unit alone can guarantee that a small class is in every split. So while a split has no unit
of a class by hash alone, one unit of that class is moved ("lent") to it. A class lends at most one unit to each split
that lacks it; adding images can change which unit is lent, or end the loan, and moves nothing else. A class of N units
is missing from a split of fraction f with probability (1 - f) ** N: 4% for 20 units and 15%, 0.00001% for 100. Once
the hash has filled every split of a class, none of its units ever moves again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sightline.config import SplitConfig
from sightline.errors import ConfigError, plural
from sightline.randomness import derive
from sightline.records import PARTS, Part, Picture

SHOWN = 3  # classes listed in a note


@dataclass(frozen=True, slots=True)
class Split:
    """The split of each image, in order, and notes for the user.

    `groups` names the unit of each image: its group, or its sha256 without one. `unvalidated` and `untested` are the
    classes without an image in the validation and the test split, empty if there is no such split. `across` names the
    groups with images in several splits, which only splits given by the source can cause.
    """

    parts: tuple[Part, ...]
    notes: tuple[str, ...]
    groups: tuple[str, ...] = ()
    unvalidated: tuple[str, ...] = ()
    untested: tuple[str, ...] = ()
    across: tuple[str, ...] = ()


@dataclass(slots=True)
class _Unit:
    """Images, by position, that stay together; `classes` counts the classes of those that may be moved."""

    name: str
    position: float
    members: list[int]
    classes: Counter[str]
    part: Part = "train"


def split(pictures: Sequence[Picture], config: SplitConfig, seed: int, groups: Sequence[str] | None = None) -> Split:
    """Assign images to the train, validation and test splits.

    Splits given by the source are kept; without a given validation split, a fraction of the training split becomes it.
    `groups` names the group of each image ("" for none). Images of one group, and images of identical content whatever
    their class, get the same split, unless the source gives them different ones.

    With ``mode="hash"`` the split of a unit depends only on its name and the seed, except for the loans described at
    the top of this file; with ``mode="stratified"`` the fractions are exact in each class (as far as groups allow), but
    adding images may move any other. In both modes a class with at least as many units as there are splits is in every
    split, a class of two units is in train and validation, and every class is in train. If units contain several
    classes, only the last of these is guaranteed.

    Raises `ConfigError` if the fractions leave nothing to train on.
    """
    validation, test = _fractions(pictures, config)
    parts: list[Part] = [p.part or "train" for p in pictures]
    names = _unit_names(pictures, groups)
    units = _units(pictures, parts, names, seed)
    if config.mode == "stratified":
        for members in _by_home(units).values():
            _cut_exactly(members, validation, test)
    else:
        for unit in units:
            unit.part = _part_at(unit.position, validation, test)
    wanted = tuple(part for part, fraction in zip(PARTS, (1.0, validation, test), strict=True) if fraction)
    moved = _cover(units, wanted, seed)
    for unit in units:
        for i in unit.members:
            parts[i] = unit.part
    return _result(pictures, parts, names, groups, _notes_on(units, moved, wanted, grouped=groups is not None))


def _fractions(pictures: Sequence[Picture], config: SplitConfig) -> tuple[float, float]:
    """Return the fractions of the training images that become validation and test."""
    stated = {p.part for p in pictures} - {None}
    test = config.test if config.test is not None else (0.0 if stated else 0.15)
    test = 0.0 if "test" in stated else test
    validation = 0.0 if "validation" in stated else config.validation
    if validation + test >= 1:
        raise ConfigError(
            f"split.validation {validation:g} and split.test {test:g} leave no images to train on: "
            "their sum must be below 1."
        )
    return validation, test


def _unit_names(pictures: Sequence[Picture], groups: Sequence[str] | None) -> list[str]:
    """Return the unit name of each image: the smallest of the groups joined by identical files, or its sha256."""
    if groups is None:
        return [p.sha256 for p in pictures]
    root: dict[str, str] = {}

    def find(name: str) -> str:
        while root.setdefault(name, name) != name:
            root[name] = name = root[root[name]]
        return name

    tied: dict[str, str] = {}  # sha256 -> one of the groups that contain it
    for p, group in zip(pictures, groups, strict=True):
        if group:
            low, high = sorted((find(group), find(tied.setdefault(p.sha256, group))))
            root[high] = low
    return [find(tied[p.sha256]) if p.sha256 in tied else p.sha256 for p in pictures]


def _units(pictures: Sequence[Picture], parts: Sequence[Part], names: Sequence[str], seed: int) -> list[_Unit]:
    """Return the units of the images that may be moved, sorted by position."""
    units: dict[str, _Unit] = {}
    for i, (p, part, name) in enumerate(zip(pictures, parts, names, strict=True)):
        if part == "train":
            if name not in units:
                units[name] = _Unit(name, float(derive(seed, "split", name)) / 2.0**64, [], Counter())
            units[name].members.append(i)
            units[name].classes[p.label] += 1
    return sorted(units.values(), key=lambda unit: (unit.position, unit.name))


def _part_at(position: float, validation: float, test: float) -> Part:
    if position < 1 - validation - test:
        return "train"
    return "validation" if position < 1 - test else "test"


def _by_home(units: Iterable[_Unit]) -> dict[str, list[_Unit]]:
    """Return the units grouped by the majority class of their images."""
    homes: dict[str, list[_Unit]] = defaultdict(list)
    for unit in units:
        homes[min(unit.classes, key=lambda label: (-unit.classes[label], label))].append(unit)
    return homes


def _cut_exactly(units: Sequence[_Unit], validation: float, test: float) -> None:
    """Assign splits to consecutive units so that the numbers of images are closest to the fractions."""
    count = sum(len(unit.members) for unit in units)
    tests, validations = round(count * test), round(count * validation)
    trains = max(count - tests - validations, 0)
    done = 0
    for unit in units:
        middle = done + len(unit.members) / 2
        unit.part = "train" if middle < trains else "validation" if middle < trains + validations else "test"
        done += len(unit.members)


def _required(units: int, wanted: tuple[Part, ...]) -> tuple[Part, ...]:
    """Return the splits that must contain a class of `units` units: all of them, or the first that it can fill."""
    return wanted[:units]


def _by_class(units: Iterable[_Unit]) -> dict[str, list[_Unit]]:
    classes: dict[str, list[_Unit]] = defaultdict(list)
    for unit in units:
        for label in unit.classes:
            classes[label].append(unit)
    return dict(sorted(classes.items()))


def _cover(units: Sequence[_Unit], wanted: tuple[Part, ...], seed: int) -> list[tuple[str, _Unit]]:
    """Lend units to the splits that lack a class; return pairs of a class and the unit it lent.

    Training comes first, and no loan removes the last unit of a class from a split that must contain it.
    """
    classes = _by_class(units)
    required = {label: _required(len(members), wanted) for label, members in classes.items()}
    counts = {label: Counter(unit.part for unit in members) for label, members in classes.items()}
    moved = []

    def spare(unit: _Unit) -> bool:
        return all(unit.part not in required[label] or counts[label][unit.part] > 1 for label in unit.classes)

    for target in wanted:
        for label, members in classes.items():
            if target not in required[label] or counts[label][target]:
                continue
            lenders = [unit for unit in members if spare(unit)] or (members if target == "train" else [])
            if not lenders:
                continue
            unit = _lent(lenders, target, counts[label], seed)
            for own in unit.classes:
                counts[own][unit.part] -= 1
                counts[own][target] += 1
            unit.part = target
            moved.append((label, unit))
    return moved


def _lent(lenders: Sequence[_Unit], target: Part, counts: Mapping[Part, int], seed: int) -> _Unit:
    """Return the unit to lend: from the fullest split, chosen by hash, so that added images seldom change it."""
    fullest = max(dict.fromkeys(unit.part for unit in lenders), key=lambda part: (counts[part], -PARTS.index(part)))
    some = [unit for unit in lenders if unit.part == fullest]
    return min(some, key=lambda unit: (derive(seed, "split", target, unit.name), unit.name))


def _notes_on(
    units: Sequence[_Unit], moved: Sequence[tuple[str, _Unit]], wanted: tuple[Part, ...], *, grouped: bool
) -> list[str]:
    what = "group" if grouped else "image"
    notes = []
    helped = sorted({label for label, _ in moved})
    if helped:
        count = len({unit.name for _, unit in moved})
        were = plural(count, f"{what} was", f"{what}s were")
        notes.append(f"random assignment would have left {_listed(helped)} out of a split: {were} moved to prevent it")
    classes = _by_class(units)
    few = [label for label, members in classes.items() if len(members) < len(wanted)]
    tied = [label for label, members in classes.items() if len({unit.part for unit in members}) < len(wanted)]
    tied = [label for label in tied if label not in few]
    if few:
        verb = "have" if len(few) > 1 else "has"
        notes.append(f"{_listed(few)} {verb} fewer than {len(wanted)} different {what}s, too few for every split")
    if tied:
        verb = "are" if len(tied) > 1 else "is"
        notes.append(f"{_listed(tied)} {verb} not in every split: other classes need the shared {what}s")
    return notes


def _listed(labels: Sequence[str]) -> str:
    if len(labels) == 1:
        return f"class {labels[0]!r}"
    return f"{len(labels):,} classes (such as {', '.join(map(repr, labels[:SHOWN]))})"


def _result(
    pictures: Sequence[Picture],
    parts: Sequence[Part],
    names: Sequence[str],
    groups: Sequence[str] | None,
    notes: list[str],
) -> Split:
    held: dict[Part, set[str]] = {part: set() for part in PARTS}
    sides: dict[str, dict[Part, str]] = defaultdict(dict)
    for p, part, name in zip(pictures, parts, names, strict=True):
        held[part].add(p.label)
        sides[name].setdefault(part, p.path)
    classes = set().union(*held.values())
    lacking = {part: tuple(sorted(classes - held[part])) if held[part] else () for part in PARTS}
    across = [] if groups is None else sorted(name for name, side in sides.items() if len(side) > 1)
    for part in sorted({p.part for p in pictures if p.part} - {"train"}, key=PARTS.index):
        if lacking[part]:
            verb = "have" if len(lacking[part]) > 1 else "has"
            notes.append(f"{_listed(lacking[part])} {verb} no image in the {part} split of the source")
    if across:
        count = plural(len(across), "group spans", "groups span")
        example = " and ".join(list(sides[across[0]].values())[:2])
        notes.append(
            f"{count} more than one split of the source, such as that of {example}: the splits of the source are "
            "kept, so metrics on them may be too optimistic"
        )
    return Split(
        tuple(parts), tuple(notes), tuple(names), lacking["validation"], lacking["test"], tuple(across),
    )  # fmt: skip
