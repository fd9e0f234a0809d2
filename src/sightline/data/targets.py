"""What the label of an image says: the classes that it names, and the array that a network learns from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Targets(Protocol):
    """How a task reads labels. An `ImageRecord` holds a label as text, the same in every file that records it."""

    def list_classes(self, label: str) -> tuple[str, ...]:
        """Return the classes that a label names."""

    def encode(self, labels: Sequence[str], classes: Sequence[str]) -> NDArray[Any]:
        """Return the targets of N labels, an array [N, ...]; every class that they name is one of `classes`."""


class ClassTargets:
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


CLASS_TARGETS = ClassTargets()
