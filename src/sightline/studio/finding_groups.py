"""The groups of images that findings name, as the table of the studio has them."""

from __future__ import annotations

from collections.abc import Sequence

from sightline.data.checks.finding import Finding


def list_members(finding: Finding) -> list[tuple[tuple[str, ...], str]]:
    """Return the paths of each group of a finding, or each of its images alone, with the reason."""
    if finding.groups:
        return [(group, ", ".join(group[:8])) for group in finding.groups]
    reasons = finding.reasons or ("",) * len(finding.paths)
    return [((path,), reason) for path, reason in zip(finding.paths, reasons, strict=True)]


def join_groups(groups: Sequence[Sequence[int]]) -> dict[int, int]:
    """Return a number for each member of the groups, the same for those of groups that share a member.

    >>> join_groups([[1, 4], [2, 5], [5, 4, 7]])
    {1: 1, 4: 1, 2: 1, 5: 1, 7: 1}
    """
    parents = {i: i for group in groups for i in group}

    def find_root(i: int) -> int:
        while parents[i] != i:
            parents[i] = i = parents[parents[i]]
        return i

    for group in groups:
        for i in group:
            first, second = sorted((find_root(group[0]), find_root(i)))
            parents[second] = first
    return {i: find_root(i) for i in parents}
