"""Divide units with several classes so that each subset has its share of every class (Sechidis et al., 2011).

K. Sechidis, G. Tsoumakas and I. Vlahavas, "On the Stratification of Multi-Label Data", ECML PKDD 2011: the rarest
class goes first, each of its examples to the subset that lacks most examples of it. Here a unit may be several images
that stay together, which count as many.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence


def stratify_iteratively(
    sizes: Sequence[int], classes: Sequence[Counter[str]], fractions: Sequence[float]
) -> list[int]:
    """Return the subset of each unit, an index into `fractions`, which sum to 1.

    Unit ``i`` has ``sizes[i]`` images, ``classes[i][name]`` of them with a class. Ties go to the subset that lacks most
    images, then to the first, and units are taken in the order given, the larger ones first.

    >>> stratify_iteratively([1] * 4, [Counter("a"), Counter("b"), Counter("a"), Counter("b")], [0.5, 0.5])
    [0, 0, 1, 1]
    """
    lacking_images = [fraction * sum(sizes) for fraction in fractions]
    totals = sum(classes, Counter[str]())
    lacking = [{name: fraction * count for name, count in totals.items()} for fraction in fractions]
    by_class: dict[str, list[int]] = defaultdict(list)
    for unit, names in enumerate(classes):
        for name in names:
            by_class[name].append(unit)
    subsets = [-1] * len(sizes)

    def assign(unit: int, subset: int) -> None:
        subsets[unit] = subset
        lacking_images[subset] -= sizes[unit]
        for name, count in classes[unit].items():
            lacking[subset][name] -= count
            totals[name] -= count

    while remaining := {name: count for name, count in totals.items() if count > 0}:
        rarest = min(remaining, key=lambda name: (remaining[name], name))
        units = [unit for unit in by_class[rarest] if subsets[unit] < 0]
        for unit in sorted(units, key=lambda unit: -classes[unit][rarest]):
            assign(
                unit, max(range(len(fractions)), key=lambda subset: (lacking[subset][rarest], lacking_images[subset]))
            )
    for unit in sorted((unit for unit, subset in enumerate(subsets) if subset < 0), key=lambda unit: -sizes[unit]):
        assign(unit, lacking_images.index(max(lacking_images)))
    return subsets
