"""The meaning of an image's label: the classes that it names, and the target array for a network."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.data.class_tree import build_tree, find_parents
from sightline.errors import DataError, list_some

SEPARATOR = ";"
"""Separates the classes in a label that names several."""


class Targets(ABC):
    """How a task reads labels. A label is text in an `ImageRecord`, the same in every file that records it."""

    allows_several = False
    """Whether an image may have several classes, or none."""
    are_paths = False
    """Whether each class is a leaf of a tree, named by its path; see `data.class_tree`."""
    are_masks = False
    """Whether the target of an image is its mask, uint8 [H, W], instead of its encoded label."""
    are_ordered = False
    """Whether classes are grades, from the lowest to the highest."""

    def order_classes(self, names: Collection[str], order: Sequence[str]) -> tuple[str, ...]:
        """Return the classes in the given `order` (``data.class_order``), or sorted if it is empty.

        Raises `DataError` if `order` does not list each class once, or if the order of grades is unknown.

        >>> ClassTargets().order_classes({"b", "a"}, ()), ClassTargets().order_classes({"b", "a"}, ("b", "a"))
        (('a', 'b'), ('b', 'a'))
        """
        return check_order(names, order) if order else tuple(sorted(names))

    @abstractmethod
    def list_classes(self, label: str) -> tuple[str, ...]:
        """Return the classes that a label names."""

    @abstractmethod
    def encode(self, labels: Sequence[str], classes: Sequence[str]) -> NDArray[Any]:
        """Return the targets of N labels, an array [N, ...]; `classes` must contain every class that they name."""


class ClassTargets(Targets):
    """A label is the name of one class; targets are class indices, int32 [N]."""

    def list_classes(self, label: str) -> tuple[str, ...]:
        """Return the label itself."""
        return (label,)

    def encode(self, labels: Sequence[str], classes: Sequence[str]) -> NDArray[np.int32]:
        """Return the index of each label in `classes`, int32 [N].

        >>> ClassTargets().encode(["dog", "cat"], ["cat", "dog"]).tolist()
        [1, 0]
        """
        index = {name: i for i, name in enumerate(classes)}
        return np.array([index[label] for label in labels], np.int32)


class PathTargets(ClassTargets):
    """A label is the path of a node of a tree; targets are int32 [N]; the classes are the leaves of the tree.

    The K classes have the indices below K. After them come the parent classes, in order; only training images have such
    labels.
    """

    are_paths = True

    def encode(self, labels: Sequence[str], classes: Sequence[str]) -> NDArray[np.int32]:
        """Return the index of each label, int32 [N].

        >>> PathTargets().encode(["a/y", "a", "b"], ["a/x", "a/y", "b"]).tolist()
        [1, 3, 2]
        """
        return super().encode(labels, (*classes, *build_tree(tuple(classes)).parent_nodes))


class GradeTargets(ClassTargets):
    """A label is the name of a grade; targets are positions in the order of grades, int32 [N]."""

    are_ordered = True

    def order_classes(self, names: Collection[str], order: Sequence[str]) -> tuple[str, ...]:
        """Return the grades in `order`, else sorted by the number in their names; raises `DataError` if there is none.

        >>> GradeTargets().order_classes({"grade 10", "grade 9"}, ()), GradeTargets().order_classes({"2", "1"}, ())
        (('grade 9', 'grade 10'), ('1', '2'))
        """
        if order:
            return check_order(names, order)
        matches = [re.fullmatch(r"(\D*)(\d+(?:\.\d+)?)(\D*)", name) for name in names]
        by_number = {float(match[2]): match[0] for match in matches if match}
        if len(by_number) < len(names) or len({(match[1], match[3]) for match in matches if match}) > 1:
            example = ", ".join(f'"{name}"' for name in sorted(names)[:8])
            raise DataError(
                f"The names of the classes do not show their order, which model.task=ordinal needs: put all of them "
                f"in order, from the lowest grade to the highest, in --set 'data.class_order=[{example}]'."
            )
        return tuple(by_number[number] for number in sorted(by_number))


def list_leaf_classes(targets: Targets, labels: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the classes named by each label; none for a parent class."""
    parents = find_parents(labels) if targets.are_paths else frozenset()
    return [() if label in parents else targets.list_classes(label) for label in labels]


class LabelSetTargets(Targets):
    """A label is any number of class names, sorted and joined by `SEPARATOR`; targets are uint8 [N, K]."""

    allows_several = True

    def list_classes(self, label: str) -> tuple[str, ...]:
        """Return the classes; none for an empty label.

        >>> LabelSetTargets().list_classes("car;tree"), LabelSetTargets().list_classes("")
        (('car', 'tree'), ())
        """
        return tuple(name for name in label.split(SEPARATOR) if name)

    def encode(self, labels: Sequence[str], classes: Sequence[str]) -> NDArray[np.uint8]:
        """Return 1 for each of `classes` that a label names, else 0: uint8 [N, K].

        >>> LabelSetTargets().encode(["b", "", "a;b"], ["a", "b"]).tolist()
        [[0, 1], [0, 0], [1, 1]]
        """
        index = {name: k for k, name in enumerate(classes)}
        targets = np.zeros((len(labels), len(classes)), np.uint8)
        for row, label in zip(targets, labels, strict=True):
            row[[index[name] for name in self.list_classes(label)]] = 1
        return targets


class MaskTargets(LabelSetTargets):
    """A label names the classes in the mask of an image; the target is the mask, see `data.masks.load_masks`."""

    are_masks = True


CLASS_TARGETS, CLASS_PATHS, GRADES = ClassTargets(), PathTargets(), GradeTargets()
LABEL_SETS, MASKS = LabelSetTargets(), MaskTargets()


def check_order(names: Collection[str], order: Sequence[str]) -> tuple[str, ...]:
    """Return `order` as a tuple; raises `DataError` unless it lists each of the classes `names` once."""
    if unknown := [name for name in order if name not in names]:
        raise DataError(
            f"data.class_order has {unknown[0]!r}, which has no training images: the classes are "
            f"{list_some(sorted(names), 8)}. List these, each once."
        )
    if missing := sorted(set(names) - set(order)):
        raise DataError(f"data.class_order lacks the class {missing[0]!r}: list all {len(names)} classes, each once.")
    if len(order) > len(names):
        twice = next(name for name in order if list(order).count(name) > 1)
        raise DataError(f"data.class_order lists {twice!r} twice: list each class once.")
    return tuple(order)


def strip_zeros(name: str) -> str:
    """Return a number without its leading zeros, and any other name unchanged.

    >>> strip_zeros("007"), strip_zeros("0"), strip_zeros("cat 01")
    ('7', '0', 'cat 01')
    """
    return re.sub(r"\A0+(?=[0-9]+\Z)", "", name)


def join_classes(names: Iterable[str]) -> str:
    """Return the label of an image that has these classes, as `LabelSetTargets` reads it.

    >>> join_classes(["tree", "car", "tree"])
    'car;tree'
    """
    return SEPARATOR.join(sorted(set(names)))
