"""Work out the layout of a folder tree: which folders are wrappers, splits and classes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sightline.data.sources.filenames import split_path
from sightline.data.sources.split_names import SplitName, find_splits, parse_split_name, suggest_split
from sightline.data.types import SourceNote, Split
from sightline.errors import list_some

PathParts = tuple[str, ...]

WRAPPER_NAMES = {"images", "image", "imgs", "img", "data", "dataset", "pictures", "photos", "jpg", "jpeg", "png"}
"""Names without a meaning for the only folder below a split."""

PART_WORDS = WRAPPER_NAMES | {
    "part", "batch", "chunk", "shard", "volume", "vol", "disk", "folder", "archive", "fold", "patient",
}  # fmt: skip
"""Words in the names of folders that number the parts of one data set: ``HAM10000_images_part_1``."""

UNLABELED_WORDS = {"pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled", "unsup", "submission"}
"""Words in the names of folders of unlabeled images next to the splits."""


@dataclass(frozen=True, slots=True)
class FolderLayout:
    """The layout of the folders below `wrapper`, the outer folders that contain everything else.

    `splits` are the top folders that are splits; `inner_wrappers` maps a split to the folders that wrap its content.
    `unlabeled` are splits without class folders next to splits that have them; `unexpected` are other folders next to
    the splits. With `split_below`, each class contains the splits (``cat/train/1.jpg``). A `flat` tree has no class
    folders. `notes` report what is in doubt.
    """

    wrapper: PathParts = ()
    splits: Mapping[str, Split] = field(default_factory=dict)
    inner_wrappers: Mapping[str, PathParts] = field(default_factory=dict)
    unlabeled: frozenset[str] = frozenset()
    unexpected: frozenset[str] = frozenset()
    split_below: bool = False
    flat: bool = False
    notes: tuple[SourceNote, ...] = ()

    def locate(self, path: PathParts) -> tuple[Split | None, PathParts] | None:
        """Return the split of a file, and its path starting at the class folder; None if it is in no split."""
        if path[: len(self.wrapper)] != self.wrapper:
            return None
        below = path[len(self.wrapper) :]
        if self.split_below:
            name = parse_split_name(below[1]) if len(below) > 2 else None
            return (name.split, (below[0], *below[2:])) if name else None
        if not self.splits:
            return None, below
        if len(below) < 2 or below[0] not in self.splits or below[0] in self.unlabeled:
            return None
        inner = self.inner_wrappers.get(below[0], ())
        inner_path = below[1:]
        if inner_path[: len(inner)] == inner and len(inner_path) > len(inner):
            inner_path = inner_path[len(inner) :]
        return self.splits[below[0]], inner_path

    def is_unlabeled(self, path: PathParts) -> bool:
        """Return whether a file is in a split without labels."""
        depth = len(self.wrapper)
        return path[:depth] == self.wrapper and len(path) > depth + 1 and path[depth] in self.unlabeled


def infer_layout(
    paths: Sequence[PathParts], *, by_folder: bool = True, as_classes: bool = False, level: bool = False
) -> FolderLayout:
    """Work out the layout of the folders in `paths`, the paths of the images.

    Without `by_folder`, labels come from elsewhere and splits need no class folders. With `as_classes`, no folder is a
    split, whatever its name. `level`: the user states which folder level names the classes, so nothing is in doubt.
    """
    wrapper = _find_wrapper(paths)
    if as_classes:
        return FolderLayout(wrapper)
    below = [p[len(wrapper) :] for p in paths]
    tops: dict[str, list[PathParts]] = defaultdict(list)  # the paths in each top folder, relative to it
    for path in below:
        if len(path) > 1:
            tops[path[0]].append(path[1:])
    has_direct_files = any(len(path) == 1 for path in below)
    split_names = find_splits(tops)
    is_split = bool(tops) and len(split_names) == len(tops)
    inner_wrappers = {top: _find_inner_wrapper(top, tops[top]) for top in split_names}
    splits: dict[str, Split] = {top: name.split for top, name in split_names.items()}
    if not by_folder:
        has_splits = is_split and not has_direct_files and _denote_splits(split_names)
        return FolderLayout(wrapper, splits if has_splits else {}, inner_wrappers)
    labeled = {top for top in split_names if _holds_folders(inner_wrappers[top], tops[top])}
    if labeled and _are_splits(split_names, labeled, len(tops)):
        others = set(tops).difference(split_names)
        unlabeled = {top for top in others if _is_unlabeled_folder(top, tops[top])}
        unexpected = frozenset(others - unlabeled)
        splits |= dict.fromkeys(unlabeled, "test")
        unlabeled |= set(split_names) - labeled
        return FolderLayout(wrapper, splits, inner_wrappers, frozenset(unlabeled), unexpected)
    if _has_splits_in_classes(tops) and not has_direct_files:
        return FolderLayout(wrapper, split_below=True)
    children = {top: {p[0] for p in rest if len(p) > 1} for top, rest in tops.items()}
    has_classes = bool(labeled) or any(
        children[top] for top in tops if top not in split_names or inner_wrappers[top] == ()
    )
    is_one_folder = len(tops) == 1 or is_split  # or one folder of splits
    flat = not has_classes and (not tops or (not has_direct_files and is_one_folder))
    notes = _note_suspected_splits(split_names, tops, children, level=level)
    return FolderLayout(wrapper, flat=flat, notes=tuple(notes))


def are_numbered(names: Collection[str]) -> bool:
    """Return whether the names of folders differ only in a number or a last letter, and contain a word for parts.

    >>> are_numbered(["images_001", "images_002"]), are_numbered(["Part A", "Part B"]), are_numbered(["dr 1", "dr 2"])
    (True, True, False)
    """
    stems = {re.sub(r"\d+|(?<=[\W_])[a-z]$", "", name.casefold()) for name in names}
    return len(set(names)) > 1 and len(stems) == 1 and bool(PART_WORDS & set(re.split(r"[\W_]+", min(stems))))


def select_top_files(keys: Iterable[str], images: Iterable[str]) -> list[str]:
    """Return the files in at most one folder below the wrapper of all `images`, outermost first.

    >>> images = ["a/b/cat/1.jpg", "a/b/dog/2.jpg"]
    >>> select_top_files(["a/b/out/1.csv", "a/b/train.csv", "a/b/cat/notes/1.csv"], images)
    ['a/b/train.csv', 'a/b/out/1.csv']
    """
    wrapper = "".join(f"{folder}/" for folder in _find_wrapper([split_path(image) for image in images]))
    top = [key for key in keys if key.removeprefix(wrapper).count("/") < 2]
    return sorted(top, key=lambda key: key.count("/"))


def _find_wrapper(paths: Sequence[PathParts]) -> PathParts:
    """Return the leading folders that all paths share and that are neither a split nor a class."""
    wrapper: PathParts = ()
    while paths:
        depth = len(wrapper)
        deeper = [p for p in paths if len(p) > depth + 1]
        first_folders = {p[depth] for p in deeper}
        if len(first_folders) != 1 or min(len(p) for p in deeper) < depth + 3:
            break
        name = parse_split_name(min(first_folders))
        if name is not None and name.exact:
            break
        wrapper = (*wrapper, min(first_folders))
    return wrapper


def _find_inner_wrapper(top: str, rest: Sequence[PathParts]) -> PathParts:
    """Return the folders within a split that wrap its content: ``seg_train/seg_train/``, ``train/images/``."""
    inner: PathParts = ()
    while True:
        depth = len(inner)
        first_folders = {p[depth] for p in rest}
        if len(first_folders) != 1 or min(len(p) for p in rest) < depth + 2:
            return inner
        name = min(first_folders)
        if name.casefold() != top.casefold() and name.casefold() not in WRAPPER_NAMES:
            return inner
        inner = (*inner, name)


def _holds_folders(inner: PathParts, rest: Sequence[PathParts]) -> bool:
    """Return whether a folder with the paths `rest` contains folders below `inner`, which wraps its content."""
    return any(len(path) > len(inner) + 1 for path in rest)


def _is_unlabeled_folder(top: str, rest: Sequence[PathParts]) -> bool:
    """Return whether a folder is named like one of unlabeled images and contains no folders."""
    words = UNLABELED_WORDS & set(re.split(r"[\W_]+", top.casefold()))
    return bool(words) and not _holds_folders(_find_inner_wrapper(top, rest), rest)


def _denote_splits(names: Mapping[str, SplitName]) -> bool:
    """Return whether names denote two or more splits, or the training split by its exact name."""
    return len({s.split for s in names.values()}) > 1 or any(s.exact and s.split == "train" for s in names.values())


def _are_splits(names: Mapping[str, SplitName], labeled: Collection[str], count: int) -> bool:
    """Return whether folders named like splits are splits; those in `labeled` contain class folders.

    A folder ``test`` next to folders that are not splits is a class (``test``, ``control``), and so is a folder with a
    longer name (``train_station``), unless there is a folder of another split.
    """
    return _denote_splits(names) or (len(names) == count and any(names[top].exact for top in labeled))


def _has_splits_in_classes(tops: Mapping[str, Sequence[PathParts]]) -> bool:
    """Return whether every top folder contains only folders named like splits: ``cat/train/``, ``cat/test/``."""
    splits: set[Split] = set()
    for rest in tops.values():
        names = {p[0] for p in rest if len(p) > 1}
        exact = [name for child in names if (name := parse_split_name(child)) is not None and name.exact]
        if not names or len(exact) < len(names) or any(len(p) == 1 for p in rest):
            return False
        splits |= {name.split for name in exact}
    return "train" in splits and len(splits) > 1


def _note_suspected_splits(
    names: Mapping[str, SplitName],
    tops: Mapping[str, Sequence[PathParts]],
    children: Mapping[str, set[str]],
    *,
    level: bool,
) -> list[SourceNote]:
    """Return a note for each class folder that looks like a split, by name or because all contain the same folders."""
    splits = {s.split for s in names.values()}
    if len(splits) > 1 and (len(names) == len(tops) or "train" in splits):
        return [SourceNote("split-folders", top, f"named like the {names[top].split} split") for top in sorted(names)]
    single_notes = [
        SourceNote("split-named-class", t, f"read as a class, named like the {n.split} split")
        for t, n in names.items()
        if n.exact
    ]
    if level or len(tops) < 2 or any(len(p) == 1 for rest in tops.values() for p in rest):
        return single_notes
    folded = [{child.casefold() for child in child_names} for child_names in children.values()]
    common = set.intersection(*folded)
    if len(common) < 2 or 2 * len(common) < len(set.union(*folded)):
        return single_notes
    reason = f"has the same folders as the others: {list_some(sorted(common), 3)}"
    suggestions = {top: suggest_split(top) for top in sorted(tops)}
    return [SourceNote("split-folders", top, f"did you mean {s!r}?" if s else reason) for top, s in suggestions.items()]
