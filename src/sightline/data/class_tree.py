"""A tree of classes: its nodes are paths such as ``animal/cat``, and its leaves are the classes of a model.

The path of a class names all its ancestors, so the class list of a run, a bundle or an export contains the tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sightline.errors import DataError, list_some

PATH_SEPARATOR = "/"
MAX_DEPTH = 16  # classes in a path
LEAST_PROBABILITY = float(np.nextafter(0.5, 1))
"""The smallest probability of a predicted node: above one half, which at most one node per level can reach."""


@dataclass(frozen=True, slots=True, eq=False)
class ClassTree:
    """The tree of K classes, with M nodes besides the root.

    Attributes:
        classes: The leaves, in the order of the probabilities of a model.
        nodes: The paths of all nodes, sorted, so that each node comes after its ancestors.
        parents: The position in `nodes` of the parent of each node, int64 [M]; -1 for the root.
        depths: The number of classes in the path of each node, int64 [M].
        ancestors: The positions in `nodes` along the path to each class, int64 [K, D], where D is the greatest depth;
            for a class at a smaller depth, its own position is repeated in the remaining columns.
    """

    classes: tuple[str, ...]
    nodes: tuple[str, ...]
    parents: NDArray[np.int64]
    depths: NDArray[np.int64]
    ancestors: NDArray[np.int64]

    @property
    def levels(self) -> int:
        """The greatest depth of a class."""
        return int(self.ancestors.shape[1])

    @property
    def parent_nodes(self) -> tuple[str, ...]:
        """The paths of the parent classes, sorted."""
        return tuple(sorted(set(self.nodes).difference(self.classes)))

    def list_leaves(self, labels: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Return 1 for each class that an image may have, uint8 [N, K]: its own class, or the leaves below its node.

        `labels` [N] are class indices; values of K and above are parent classes, in the order of `parent_nodes` (see
        `PathTargets`).
        """
        position = {node: i for i, node in enumerate(self.nodes)}
        below = [(self.ancestors == position[node]).any(1) for node in self.parent_nodes]
        rows = np.vstack([np.eye(len(self.classes), dtype=bool), *below])
        leaves: NDArray[np.uint8] = rows[labels].astype(np.uint8)
        return leaves

    def sum_probabilities(self, probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the probability of each node, float64 [N, M], from the class probabilities [N, K].

        The probability of a parent class is the sum over its children, so no node is less probable than a descendant.
        """
        sums = np.zeros((len(self.nodes), len(probabilities)))
        sums[self.ancestors[:, -1]] = probabilities.T
        for depth in range(self.levels, 1, -1):
            nodes = np.flatnonzero(self.depths == depth)
            np.add.at(sums, self.parents[nodes], sums[nodes])
        return np.minimum(sums.T, 1.0)

    def find_deepest_nodes(self, node_probabilities: NDArray[np.float64], threshold: float) -> NDArray[np.int64]:
        """Return the deepest node whose probability is at least `threshold`, int64 [N]; -1 for the root.

        `node_probabilities` are float64 [N, M]. The effective threshold is at least `LEAST_PROBABILITY`,
        so that the passing nodes of an image are on one path.
        """
        passing = node_probabilities >= max(threshold, LEAST_PROBABILITY)
        deepest = np.where(passing, self.depths, 0).argmax(1)
        return np.where(passing.any(1), deepest, -1)

    def are_above(self, nodes: NDArray[np.int64], labels: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Return whether each of `nodes` [N] is the class in `labels` [N] or above it, bool [N]; False for the root."""
        above: NDArray[np.bool_] = (self.ancestors[labels] == nodes[:, None]).any(1)
        return above


@lru_cache(maxsize=8)
def build_tree(classes: tuple[str, ...]) -> ClassTree:
    """Return the tree of classes named by their paths; raises `DataError` if they form no tree, see `check_paths`."""
    check_paths(classes)
    paths = [name.split(PATH_SEPARATOR) for name in classes]
    nodes = sorted({PATH_SEPARATOR.join(path[:depth]) for path in paths for depth in range(1, len(path) + 1)})
    position = {node: i for i, node in enumerate(nodes)}
    levels = max(map(len, paths))
    ancestors = [[position[PATH_SEPARATOR.join(path[:depth])] for depth in range(1, levels + 1)] for path in paths]
    return ClassTree(
        classes,
        tuple(nodes),
        np.array([position.get(node.rpartition(PATH_SEPARATOR)[0], -1) for node in nodes], np.int64),
        np.array([node.count(PATH_SEPARATOR) + 1 for node in nodes], np.int64),
        np.array(ancestors, np.int64),
    )


def find_parents(labels: Iterable[str]) -> frozenset[str]:
    """Return the labels that are parent classes of others.

    >>> find_parents(["animal", "animal/cat", "truck"])
    frozenset({'animal'})
    """
    names = frozenset(labels)
    paths = [name.split(PATH_SEPARATOR) for name in names]
    return names & {PATH_SEPARATOR.join(path[:depth]) for path in paths for depth in range(1, len(path))}


def check_paths(classes: Sequence[str]) -> None:
    """Raise `DataError` unless `classes` are the leaves of a tree, at least one of them below another node.

    A class cannot have an empty name in its path, more than `MAX_DEPTH` names, or be above another class.
    """
    known = set(classes)
    if all(PATH_SEPARATOR not in name for name in classes):
        names = list_some(sorted(classes), 4)
        raise DataError(
            f"There is no tree: none of the classes {names} is a path such as animal/cat. Set data.class_tree=folders "
            "for nested folders, data.class_tree=column for the column parent of a manifest, or data.class_tree=FILE "
            "for a table with the columns name and parent."
        )
    for name in classes:
        path = name.split(PATH_SEPARATOR)
        if not all(name_in_path.strip() for name_in_path in path):
            raise DataError(f"The class {name!r} has an empty name in its path: expected a path such as animal/cat.")
        if len(path) > MAX_DEPTH:
            raise DataError(f"The class {name[:80]!r} is {len(path)} levels deep: a tree has at most {MAX_DEPTH}.")
        for depth in range(1, len(path)):
            if (above := PATH_SEPARATOR.join(path[:depth])) in known:
                raise DataError(
                    f"{above!r} has images of its own, and so has {name!r} below it: put them into a class below "
                    f"{above!r}, such as {above}/other, or leave them out."
                )


def resolve_paths(parents: Mapping[str, str], source: str) -> dict[str, str]:
    """Return the path of each class from the name of its parent; the parent is "" directly below the root.

    A parent that is not a key is a path, or a node directly below the root. `source` names the table in messages.
    Raises `DataError` for parents in a cycle, and for a path of more than `MAX_DEPTH` names.
    """
    paths = {}
    for name in parents:
        path = [name]
        while parent := parents.get(path[-1], ""):
            if parent in path:
                cycle = " < ".join([*path, parent])
                raise DataError(f"{source}: the parents of {name!r} form a cycle ({cycle}): change one of them.")
            path.append(parent)
            if len(path) > MAX_DEPTH:
                raise DataError(f"{source}: {name!r} is more than {MAX_DEPTH} levels deep: shorten its path.")
        paths[name] = PATH_SEPARATOR.join(reversed(path))
    return paths
