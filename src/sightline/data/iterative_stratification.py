"""Divide units with several classes so that each subset gets its share of every class and new units move few others.

K. Sechidis, G. Tsoumakas and I. Vlahavas, "On the Stratification of Multi-Label Data", ECML PKDD 2011: the rarest class
is assigned first, each of its examples to the subset that lacks the most examples of it. Here a unit may consist of
several images that stay together and count as several examples. Each unit also has a home: the subset whose interval of
[0, 1) contains its position. A unit stays at home while that subset lacks examples; the units nearest to another
interval leave first. Most units therefore stay where their position puts them, and adding or removing units moves few
others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate

ROUNDING = 1e-9  # images; rounding error allowed in sums of fractions


def stratify_iteratively(
    sizes: Sequence[int], classes: Sequence[Counter[str]], fractions: Sequence[float], positions: Iterable[float]
) -> list[int]:
    """Return the subset of each unit, an index into `fractions`, which sum to 1.

    Unit ``i`` has ``sizes[i]`` images, ``classes[i][name]`` of them with a class, and the position ``positions[i]`` in
    [0, 1). Units with more images of a class come first. A unit stays at home if its home lacks more than half of the
    unit's images of the class, or at least as many as any other subset. Otherwise it goes to the subset that lacks the
    most; ties go to the subset that lacks the most images of all classes, then to the first.

    >>> classes = [Counter("a"), Counter("a"), Counter("b"), Counter("b")]
    >>> stratify_iteratively([1] * 4, classes, [0.5, 0.5], [0.1, 0.2, 0.3, 0.9])
    [0, 1, 0, 1]
    """
    places = list(map(float, positions))
    allowed = [subset for subset, fraction in enumerate(fractions) if fraction > 0]
    edges = list(accumulate(fractions))
    homes = [min(bisect_right(edges, position), allowed[-1]) for position in places]
    margins = [min((abs(position - edge) for edge in edges[:-1]), default=1.0) for position in places]
    lacking_images = [fraction * sum(sizes) for fraction in fractions]
    totals = sum(classes, Counter[str]())
    lacking = {name: [fraction * count for fraction in fractions] for name, count in totals.items()}
    by_class: dict[str, list[int]] = defaultdict(list)
    for unit, names in enumerate(classes):
        for name in names:
            by_class[name].append(unit)
    subsets = [-1] * len(sizes)

    def assign(counts: dict[int, int], lacks: list[float]) -> None:
        for unit in sorted(counts, key=lambda unit: (-counts[unit], -margins[unit], places[unit])):
            home = homes[unit]
            if lacks[home] <= counts[unit] / 2 + ROUNDING:
                home = max(allowed, key=lambda subset: (lacks[subset], subset == homes[unit], lacking_images[subset]))
            subsets[unit] = home
            lacking_images[home] -= sizes[unit]
            for name, count in classes[unit].items():
                lacking[name][home] -= count

    for name in sorted(totals, key=lambda name: (totals[name], name)):
        assign({unit: classes[unit][name] for unit in by_class[name] if subsets[unit] < 0}, lacking[name])
    assign({unit: size for unit, size in enumerate(sizes) if subsets[unit] < 0}, lacking_images)
    return subsets
