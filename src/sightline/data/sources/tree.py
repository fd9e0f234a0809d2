"""Work out the layout of a folder tree: which folders are wrappers, splits and classes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from sightline.data.sources.splits import SplitName, nearest_split, split_name, splits_among
from sightline.records import Part, Remark

Path = tuple[str, ...]

SPLIT_FOLDERS = "split-folders"
"""Finding: folders read as classes look like splits. Naming it in `--allow` confirms that they are classes."""

SPLIT_CLASS = "split-named-class"
"""Finding: one class folder has the name of a split, as a class may."""

WRAPPERS = {"images", "image", "imgs", "img", "data", "dataset", "pictures", "photos", "jpg", "jpeg", "png"}
"""Folders below a split that carry no meaning where they are the only one."""

UNLABELED = {"pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled", "unsup", "submission"}
"""Words in the name of a folder next to the splits that holds unlabeled images."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The layout of the folders below `wrapper`, the outer folders that hold everything else.

    `splits` are the top folders that are splits; `inner` maps a split to the folders that wrap its content.
    `unlabeled` are splits without class folders next to others that have them; `unexpected` are other folders next to
    the splits, with the depth of their content. With `split_below` each class contains the splits
    (``cat/train/1.jpg``). A `flat` tree has no class folders. `remarks` name what is in doubt.
    """

    wrapper: Path = ()
    splits: Mapping[str, Part] = field(default_factory=dict)
    inner: Mapping[str, Path] = field(default_factory=dict)
    unlabeled: frozenset[str] = frozenset()
    unexpected: Mapping[str, int] = field(default_factory=dict)
    split_below: bool = False
    flat: bool = False
    remarks: tuple[Remark, ...] = ()

    def place(self, path: Path) -> tuple[Part | None, Path] | None:
        """Return the split of a file and its path from the class folder on, or None if it is in no split."""
        if path[: len(self.wrapper)] != self.wrapper:
            return None
        below = path[len(self.wrapper) :]
        if self.split_below:
            name = split_name(below[1]) if len(below) > 2 else None
            return (name.split, (below[0], *below[2:])) if name else None
        if not self.splits:
            return None, below
        if len(below) < 2 or below[0] not in self.splits or below[0] in self.unlabeled:
            return None
        inner = self.inner.get(below[0], ())
        rest = below[1:]
        if rest[: len(inner)] == inner and len(rest) > len(inner):
            rest = rest[len(inner) :]
        return self.splits[below[0]], rest

    def is_unlabeled(self, path: Path) -> bool:
        """Return whether a file is in a split without labels."""
        depth = len(self.wrapper)
        return path[:depth] == self.wrapper and len(path) > depth + 1 and path[depth] in self.unlabeled


def read_tree(paths: Sequence[Path], *, by_folder: bool = True, as_classes: bool = False, level: bool = False) -> Tree:
    """Work out the layout of the folders in `paths`, the paths of the images.

    Without `by_folder`, labels come from elsewhere and splits need no class folders. With `as_classes`, no folder is a
    split, whatever its name. `level`: the user states which level names the classes, so nothing is in doubt.
    """
    wrapper = _wrapper(paths)
    below = [p[len(wrapper) :] for p in paths]
    tops: dict[str, list[Path]] = defaultdict(list)
    for path in below:
        if len(path) > 1:
            tops[path[0]].append(path[1:])
    if as_classes:
        return Tree(wrapper)
    direct = any(len(path) == 1 for path in below)
    names = splits_among(tops)
    inner = {top: _inner(top, tops[top]) for top in names}
    labeled = {top for top in names if any(len(p) > len(inner[top]) + 1 for p in tops[top])}
    if not by_folder:
        all_splits = bool(tops) and not direct and len(names) == len(tops) and _tell(names)
        return Tree(wrapper, {t: s.split for t, s in names.items()} if all_splits else {}, inner)
    if labeled and _are_splits(names, labeled, len(tops)):
        others = {top: max(map(len, rest)) for top, rest in tops.items() if top not in names}
        unlabeled = {t for t in others if UNLABELED & set(re.split(r"[\W_]+", t.casefold()))}
        unlabeled = {t for t in unlabeled if not any(len(p) > len(_inner(t, tops[t])) + 1 for p in tops[t])}
        splits: dict[str, Part] = {top: s.split for top, s in names.items()} | dict.fromkeys(unlabeled, "test")
        unlabeled |= set(names) - labeled
        unexpected = {top: depth for top, depth in others.items() if top not in unlabeled}
        return Tree(wrapper, splits, inner, frozenset(unlabeled), unexpected)
    if _split_below(tops) and not direct:
        return Tree(wrapper, split_below=True)
    children = {top: {p[0] for p in rest if len(p) > 1} for top, rest in tops.items()}
    flat = not any(children[top] for top in tops if top not in names or inner[top] == ())
    flat = flat and not labeled and (not tops or (not direct and (len(tops) == 1 or (len(names) == len(tops)))))
    doubts = _suspect(names, tops, children, level=level)
    return Tree(wrapper, flat=flat, remarks=tuple(doubts))


def _wrapper(paths: Sequence[Path]) -> Path:
    """Return the leading folders that all paths share and that are neither a split nor a class."""
    wrapper: Path = ()
    while paths:
        depth = len(wrapper)
        deeper = [p for p in paths if len(p) > depth + 1]
        first = {p[depth] for p in deeper}
        if len(first) != 1 or min(len(p) for p in deeper) < depth + 3:
            break
        name = split_name(min(first))
        if name is not None and name.exact:
            break
        wrapper = (*wrapper, min(first))
    return wrapper


def _inner(top: str, rest: Sequence[Path]) -> Path:
    """Return the folders in a split that wrap its content: ``seg_train/seg_train/``, ``train/images/``."""
    inner: Path = ()
    while True:
        depth = len(inner)
        first = {p[depth] for p in rest}
        if len(first) != 1 or min(len(p) for p in rest) < depth + 2:
            return inner
        name = min(first)
        if name.casefold() != top.casefold() and name.casefold() not in WRAPPERS:
            return inner
        inner = (*inner, name)


def _tell(names: Mapping[str, SplitName]) -> bool:
    """Return whether names denote two or more splits, or the training split by its exact name."""
    return len({s.split for s in names.values()}) > 1 or any(s.exact and s.split == "train" for s in names.values())


def _are_splits(names: Mapping[str, SplitName], labeled: Collection[str], count: int) -> bool:
    """Return whether folders named as splits are splits; those in `labeled` hold class folders.

    A folder ``test`` next to folders that are not splits is a class (``test``, ``control``), and so is a folder with a
    longer name (``train_station``), unless there is a folder of another split.
    """
    plain = any(names[top].exact for top in labeled)
    if len(names) == count:
        return plain or _tell(names)
    return _tell(names)


def _split_below(tops: Mapping[str, Sequence[Path]]) -> bool:
    """Return whether every top folder holds only folders named as splits: ``cat/train/``, ``cat/test/``."""
    splits: set[Part] = set()
    for rest in tops.values():
        names = {p[0] for p in rest if len(p) > 1}
        exact = [name for child in names if (name := split_name(child)) is not None and name.exact]
        if not names or len(exact) < len(names) or any(len(p) == 1 for p in rest):
            return False
        splits |= {name.split for name in exact}
    return "train" in splits and len(splits) > 1


def _suspect(
    names: Mapping[str, SplitName], tops: Mapping[str, Sequence[Path]], children: Mapping[str, set[str]], *, level: bool
) -> list[Remark]:
    """Return a remark for each class folder that looks like a split: by name, or because all hold the same folders."""
    if len({s.split for s in names.values()}) > 1 and (len(names) == len(tops) or "train" in _splits(names)):
        return [Remark(SPLIT_FOLDERS, top, f"named like the {names[top].split} split") for top in sorted(names)]
    alone = [
        Remark(SPLIT_CLASS, t, f"read as a class, named like the {n.split} split") for t, n in names.items() if n.exact
    ]
    if level or len(tops) < 2 or any(len(p) == 1 for rest in tops.values() for p in rest):
        return alone
    folded = [{child.casefold() for child in held} for held in children.values()]
    common = set.intersection(*folded)
    if len(common) < 2 or 2 * len(common) < len(set.union(*folded)):
        return alone
    shown = ", ".join(sorted(common)[:3]) + (", ..." if len(common) > 3 else "")

    def reason(top: str) -> str:
        near = nearest_split(top)
        return f"did you mean {near!r}?" if near else f"has the same folders as the others: {shown}"

    return [Remark(SPLIT_FOLDERS, top, reason(top)) for top in sorted(tops)]


def _splits(names: Mapping[str, SplitName]) -> set[Part]:
    return {s.split for s in names.values()}
