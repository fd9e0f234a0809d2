"""Assign images to the train, validation and test splits.

Images that must stay together (identical files, and images of one group) form a unit. The position of a unit, a number
in [0, 1) hashed from the seed and the unit's name, is compared with the split fractions. A split therefore
depends on nothing but the name and the seed, with one exception.

No rule that considers each unit alone can guarantee that a small class is in every split. So while the hashes put no
unit of a class into a split, one unit of that class is moved there. At most one unit of a class is moved to each split
that lacks it; adding images can change which unit is moved, or move it back, and moves nothing else. A class of N units
is missing from a split of fraction f with probability (1 - f) ** N: 4% for 20 units and 15%, 0.00001% for 100. Once
the hashes fill every split with a class, none of its units ever moves again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sightline.config import SplitConfig
from sightline.data.iterative_stratification import stratify_iteratively
from sightline.data.targets import CLASS_TARGETS, Targets, list_leaf_classes
from sightline.data.types import SPLITS, ImageRecord, Split
from sightline.errors import ConfigError, plural
from sightline.seeding import derive_seed

MAX_SHOWN_CLASSES = 3  # classes listed in a note


@dataclass(frozen=True, slots=True)
class SplitAssignment:
    """The split of each image, in order, and notes for the user.

    `groups` names the unit of each image: its group, or else its sha256.
    """

    splits: tuple[Split, ...]
    notes: tuple[str, ...]
    groups: tuple[str, ...] = ()


@dataclass(slots=True)
class _Unit:
    """Images that stay together, by position; `classes` counts the classes of the images that may be moved."""

    name: str
    position: float
    members: list[int]
    classes: Counter[str]
    split: Split = "train"


def assign_splits(
    images: Sequence[ImageRecord],
    config: SplitConfig,
    seed: int,
    groups: Sequence[str] | None = None,
    targets: Targets = CLASS_TARGETS,
) -> SplitAssignment:
    """Assign images to the train, validation and test splits.

    Splits stated by the source are kept; if it states no validation split, a fraction of the training split is used for
    it. `groups` names the group of each image ("" for none). Images of one group, and images with identical content,
    whatever their class, get the same split unless the source states different ones.

    With ``mode="hash"`` the split of a unit depends only on its name and the seed, except for the units that are moved
    as described at the top of this file. With ``mode="stratified"`` the fractions are exact in each class, as far as
    groups allow, and adding images moves those near the thresholds; images with several classes are stratified
    iteratively, which moves units out of splits that happen to have too many of a class. In both modes, a class with
    at least as many units as there are splits is in every split, a class of two units is in train and validation, and
    every class is in train. If units contain several classes, only the last of these guarantees holds. Images labeled
    with a parent class are in train, unless other images of their unit are not.

    Raises `ConfigError` if the fractions leave nothing to train on, or if one fold contains all images.
    """
    if config.folds:
        splits: list[Split] = ["test" if p.split == "test" else "train" for p in images]
    else:
        splits = [p.split or "train" for p in images]
    names = _unit_names(images, groups)
    classes = list_leaf_classes(targets, [p.label for p in images])
    units = _build_units(classes, splits, names, seed)
    if targets.are_paths:
        units = [unit for unit in units if unit.classes]  # the others only have labels for training
    if config.folds:
        folds = _list_folds(units, config, targets)
        _check_folds(folds, config, grouped=groups is not None)
        return _build_assignment(
            images,
            classes,
            _assign_fold(units, splits, config, seed, folds),
            names,
            groups,
            _describe_folds(units, folds, config, grouped=groups is not None),
        )
    validation, test = _split_fractions(images, config)
    if config.mode == "stratified" and targets.allows_several:
        _assign_iteratively(units, validation, test)
    elif config.mode == "stratified":
        for members in _group_by_majority_class(units).values():
            _assign_stratified(members, validation, test)
    else:
        for unit in units:
            unit.split = _split_at(unit.position, validation, test)
    target_splits = tuple(split for split, fraction in zip(SPLITS, (1.0, validation, test), strict=True) if fraction)
    moves = _fill_missing(units, target_splits, seed)
    for unit in units:
        for i in unit.members:
            splits[i] = unit.split
    return _build_assignment(
        images, classes, splits, names, groups, _describe_moves(units, moves, target_splits, grouped=groups is not None)
    )


def _split_fractions(images: Sequence[ImageRecord], config: SplitConfig) -> tuple[float, float]:
    """Return the fractions of the training images that become validation and test."""
    given_splits = {p.split for p in images} - {None}
    test = config.test if config.test is not None else (0.0 if given_splits else 0.15)
    test = 0.0 if "test" in given_splits else test
    validation = 0.0 if "validation" in given_splits else config.validation
    if validation + test >= 1:
        raise ConfigError(
            f"split.validation {validation:g} and split.test {test:g} leave no images to train on: "
            "their sum must be below 1."
        )
    return validation, test


def _unit_names(images: Sequence[ImageRecord], groups: Sequence[str] | None) -> list[str]:
    """Return the unit name of each image: the smallest of the groups that identical files connect, or its sha256."""
    if groups is None:
        return [p.sha256 for p in images]
    root: dict[str, str] = {}

    def find(name: str) -> str:
        while root.setdefault(name, name) != name:
            root[name] = name = root[root[name]]
        return name

    group_of_content: dict[str, str] = {}  # sha256 -> one of the groups that contain it
    for p, group in zip(images, groups, strict=True):
        if group:
            low, high = sorted((find(group), find(group_of_content.setdefault(p.sha256, group))))
            root[high] = low
    return [find(group_of_content[p.sha256]) if p.sha256 in group_of_content else p.sha256 for p in images]


def _build_units(
    classes: Sequence[tuple[str, ...]], splits: Sequence[Split], names: Sequence[str], seed: int
) -> list[_Unit]:
    """Return the units of the images that may be moved, sorted by position."""
    units: dict[str, _Unit] = {}
    for i, (labels, split, name) in enumerate(zip(classes, splits, names, strict=True)):
        if split == "train":
            if name not in units:
                units[name] = _Unit(name, float(derive_seed(seed, "split", name)) / 2.0**64, [], Counter())
            units[name].members.append(i)
            units[name].classes.update(labels)
    return sorted(units.values(), key=lambda unit: (unit.position, unit.name))


def _split_at(position: float, validation: float, test: float) -> Split:
    if position < 1 - validation - test:
        return "train"
    return "validation" if position < 1 - test else "test"


def _assign_fold(
    units: Sequence[_Unit], splits: list[Split], config: SplitConfig, seed: int, folds: Mapping[str, int]
) -> list[Split]:
    """Return the splits of the run that tests on ``split.fold``; if the fold is unset, return `splits` unchanged.

    The fold of a unit depends on its name and the seed alone, in the stratified mode also on the other units of its
    class. Which units of the other folds are validation units depends on their names, whatever the fold.
    """
    if config.fold is None:
        return splits
    others = [unit for unit in units if folds[unit.name] != config.fold]
    for unit in units:
        unit.split = "test" if folds[unit.name] == config.fold else "train"
    for unit in others:
        position = derive_seed(seed, "split", "fold", unit.name) / 2.0**64
        unit.split = "validation" if position < config.validation else "train"
    _fill_missing(others, ("train", "validation"), seed)
    for unit in units:
        for i in unit.members:
            splits[i] = unit.split
    return splits


def _list_folds(units: Sequence[_Unit], config: SplitConfig, targets: Targets) -> dict[str, int]:
    """Return the fold of each unit, by name."""
    if config.mode == "hash":
        return {unit.name: int(unit.position * config.folds) for unit in units}
    if targets.allows_several:
        subsets = _stratify(units, [1 / config.folds] * config.folds)
        return {unit.name: subset for unit, subset in zip(units, subsets, strict=True)}
    folds = {}
    for number, members in enumerate(_group_by_majority_class(units).values()):
        count, assigned = sum(len(unit.members) for unit in members), 0
        for unit in members:
            middle = assigned + len(unit.members) / 2
            folds[unit.name] = (int(middle * config.folds / count) + number) % config.folds  # rotated by class
            assigned += len(unit.members)
    return folds


def _check_folds(folds: Mapping[str, int], config: SplitConfig, *, grouped: bool) -> None:
    """Raise `ConfigError` if all units are in one fold, because its model would have nothing to train on."""
    if len(set(folds.values())) > 1:
        return
    count = plural(len(folds), "group" if grouped else "different image")
    advice = "--set split.mode=stratified spreads them over the folds, and so may another --seed."
    if len(folds) < 2 or config.mode == "stratified":
        advice = f"folds need at least two {'groups' if grouped else 'different images'}, so leave out --folds."
    raise ConfigError(
        f"All images outside the test split, {count}, are in one of the {config.folds} folds, so its model would "
        f"have nothing to train on: {advice}"
    )


def _describe_folds(
    units: Sequence[_Unit], folds: Mapping[str, int], config: SplitConfig, *, grouped: bool
) -> list[str]:
    """Return notes on folds without images, and on classes in a single fold, whose model cannot learn them.

    The final model has none: its folds have stated them.
    """
    if config.fold is None:
        return []
    notes = []
    if empty := config.folds - len(set(folds.values())):
        count = plural(len(folds), "group" if grouped else "different image")
        notes.append(
            f"{empty} of the {config.folds} folds hold out no image, as there are only {count}: "
            "their models predict nothing, and a smaller --folds takes less time"
        )
    alone = [
        label for label, members in _group_by_class(units).items() if len({folds[unit.name] for unit in members}) == 1
    ]
    if alone:
        verb = "are each" if len(alone) > 1 else "is"
        notes.append(f"{_describe_classes(alone)} {verb} in one fold only, whose model does not learn it")
    return notes


def _group_by_majority_class(units: Iterable[_Unit]) -> dict[str, list[_Unit]]:
    """Return the units grouped by the majority class of their images."""
    by_class: dict[str, list[_Unit]] = defaultdict(list)
    for unit in units:
        by_class[min(unit.classes, key=lambda label: (-unit.classes[label], label))].append(unit)
    return by_class


def _assign_stratified(units: Sequence[_Unit], validation: float, test: float) -> None:
    """Assign splits to consecutive units so that the numbers of images are closest to the fractions."""
    count = sum(len(unit.members) for unit in units)
    num_test, num_validation = round(count * test), round(count * validation)
    num_train = max(count - num_test - num_validation, 0)
    assigned = 0
    for unit in units:
        middle = assigned + len(unit.members) / 2
        unit.split = "train" if middle < num_train else "validation" if middle < num_train + num_validation else "test"
        assigned += len(unit.members)


def _assign_iteratively(units: Sequence[_Unit], validation: float, test: float) -> None:
    """Assign splits to images with several classes, so that each split gets its fraction of every class."""
    fractions = (1 - validation - test, validation, test)
    for unit, subset in zip(units, _stratify(units, fractions), strict=True):
        unit.split = SPLITS[subset]


def _stratify(units: Sequence[_Unit], fractions: Sequence[float]) -> list[int]:
    sizes, positions = [len(unit.members) for unit in units], [unit.position for unit in units]
    return stratify_iteratively(sizes, [unit.classes for unit in units], fractions, positions)


def _group_by_class(units: Iterable[_Unit]) -> dict[str, list[_Unit]]:
    classes: dict[str, list[_Unit]] = defaultdict(list)
    for unit in units:
        for label in unit.classes:
            classes[label].append(unit)
    return dict(sorted(classes.items()))


def _fill_missing(units: Sequence[_Unit], target_splits: tuple[Split, ...], seed: int) -> list[tuple[str, _Unit]]:
    """Move units to the splits that lack a class; return pairs of a class and the unit that was moved.

    Training comes first, and no move takes away the last unit of a class from a split that must contain it.
    """
    classes = _group_by_class(units)
    required = {label: target_splits[: len(members)] for label, members in classes.items()}  # splits it can fill
    counts = {label: Counter(unit.split for unit in members) for label, members in classes.items()}
    moves = []

    def can_spare(unit: _Unit) -> bool:
        return all(unit.split not in required[label] or counts[label][unit.split] > 1 for label in unit.classes)

    for target in target_splits:
        for label, members in classes.items():
            if target not in required[label] or counts[label][target]:
                continue
            donors = [unit for unit in members if can_spare(unit)] or (members if target == "train" else [])
            if not donors:
                continue
            unit = _choose_unit(donors, target, counts[label], seed)
            for unit_class in unit.classes:
                counts[unit_class][unit.split] -= 1
                counts[unit_class][target] += 1
            unit.split = target
            moves.append((label, unit))
    return moves


def _choose_unit(donors: Sequence[_Unit], target: Split, counts: Mapping[Split, int], seed: int) -> _Unit:
    """Return the unit to move: from the fullest split, chosen by hash, so that adding images rarely changes it."""
    fullest = max(dict.fromkeys(unit.split for unit in donors), key=lambda split: (counts[split], -SPLITS.index(split)))
    candidates = [unit for unit in donors if unit.split == fullest]
    return min(candidates, key=lambda unit: (derive_seed(seed, "split", target, unit.name), unit.name))


def _describe_moves(
    units: Sequence[_Unit], moves: Sequence[tuple[str, _Unit]], target_splits: tuple[Split, ...], *, grouped: bool
) -> list[str]:
    noun = "group" if grouped else "image"
    notes = []
    helped_classes = sorted({label for label, _ in moves})
    if helped_classes:
        count = len({unit.name for _, unit in moves})
        moved_text = plural(count, f"{noun} was", f"{noun}s were")
        notes.append(
            f"random assignment would have left {_describe_classes(helped_classes)} out of a split: "
            f"{moved_text} moved to prevent it"
        )
    classes = _group_by_class(units)
    too_small = [label for label, members in classes.items() if len(members) < len(target_splits)]
    blocked = [
        label for label, members in classes.items()
        if len({unit.split for unit in members}) < len(target_splits) <= len(members)
    ]  # fmt: skip
    if too_small:
        verb = "have" if len(too_small) > 1 else "has"
        notes.append(
            f"{_describe_classes(too_small)} {verb} fewer than {len(target_splits)} different "
            f"{noun}s, too few for every split"
        )
    if blocked:
        verb = "are" if len(blocked) > 1 else "is"
        notes.append(f"{_describe_classes(blocked)} {verb} not in every split: other classes need the shared {noun}s")
    return notes


def _describe_classes(labels: Sequence[str]) -> str:
    if len(labels) == 1:
        return f"class {labels[0]!r}"
    return f"{len(labels):,} classes (such as {', '.join(map(repr, labels[:MAX_SHOWN_CLASSES]))})"


def _build_assignment(
    images: Sequence[ImageRecord],
    classes: Sequence[tuple[str, ...]],
    splits: Sequence[Split],
    names: Sequence[str],
    groups: Sequence[str] | None,
    notes: list[str],
) -> SplitAssignment:
    classes_by_split: dict[Split, set[str]] = {split: set() for split in SPLITS}
    paths_by_group: dict[str, dict[Split, str]] = defaultdict(dict)
    for p, labels, split_name, name in zip(images, classes, splits, names, strict=True):
        classes_by_split[split_name].update(labels)
        paths_by_group[name].setdefault(split_name, p.path)
    all_classes = set().union(*classes_by_split.values())
    groups_across_splits = (
        []
        if groups is None
        else sorted(name for name, paths_by_split in paths_by_group.items() if len(paths_by_split) > 1)
    )
    for split_name in sorted({p.split for p in images if p.split} - {"train"}, key=SPLITS.index):
        present = classes_by_split[split_name]
        if present and (missing := sorted(all_classes - present)):
            verb = "have" if len(missing) > 1 else "has"
            notes.append(f"{_describe_classes(missing)} {verb} no image in the {split_name} split of the source")
    if groups_across_splits:
        count = plural(len(groups_across_splits), "group spans", "groups span")
        example = " and ".join(list(paths_by_group[groups_across_splits[0]].values())[:2])
        notes.append(
            f"{count} more than one split of the source, such as that of {example}: the splits of the source are "
            "kept, so metrics on them may be too optimistic"
        )
    return SplitAssignment(tuple(splits), tuple(notes), tuple(names))
