"""Recognize splits by their usual names, in any spelling."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from sightline.data.sources.listing import Listing
from sightline.errors import plural
from sightline.records import Part, Remark

SPLIT_NAMES: Mapping[str, Part] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
_EVALUATION = {"eval", "evaluation"}  # next to a test split, these are the validation split
_ENDS = re.compile(r"(\.(zip|tar|gz|bz2|xz|tgz|tbz2|txz|csv|tsv|json|jsonl))+$")
_LONGEST_FIRST = sorted(SPLIT_NAMES, key=len, reverse=True)


@dataclass(frozen=True, slots=True)
class SplitName:
    """A name that denotes a split by a `word`; `rest` is the remainder of the name.

    `certain` if the word is separate from the remainder (``seg_train``) rather than joined to it (``trainset``, but
    also ``strain``); `exact` if there is no remainder.
    """

    split: Part
    word: str
    rest: str
    certain: bool

    @property
    def exact(self) -> bool:
        """Whether the name is the word alone."""
        return not self.rest


def split_name(name: str) -> SplitName | None:
    """Return the split that a name denotes, or None.

    >>> split_name("seg_train").split, split_name("TestSet").split, split_name("bus")
    ('train', 'test', None)
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z])(?=\d)", " ", name)
    words = [word for word in re.split(r"[\W_]+", spaced.casefold()) if word]
    matches = [word for word in words if word in SPLIT_NAMES]
    if matches:
        if len({SPLIT_NAMES[word] for word in matches}) > 1:
            return None
        rest = "".join(word for word in words if word != matches[0])
        return SplitName(SPLIT_NAMES[matches[0]], matches[0], rest, certain=True)
    joined = "".join(words)
    for word in _LONGEST_FIRST:
        if joined.startswith(word) or joined.endswith(word):
            rest = joined.removeprefix(word) if joined.startswith(word) else joined.removesuffix(word)
            return SplitName(SPLIT_NAMES[word], word, rest, certain=False)
    return None


def splits_among(names: Collection[str]) -> dict[str, SplitName]:
    """Return the splits among `names`, by name.

    A joined word counts only if another split has a name with the same remainder: ``trainset`` and ``testset`` do,
    ``strain`` and ``contest`` do not. ``eval`` is the test split, or validation next to a test split.
    """
    candidates = {name: split for name in names if (split := split_name(name)) is not None}
    rests = {(s.rest, s.split) for s in candidates.values()}
    result = {
        name: s for name, s in candidates.items()
        if s.certain or any(rest == s.rest and split != s.split for rest, split in rests)
    }  # fmt: skip
    if any(s.split == "test" and s.word not in _EVALUATION for s in result.values()):
        for name, s in result.items():
            if s.word in _EVALUATION:
                result[name] = SplitName("validation", s.word, s.rest, s.certain)
    return result


def split_by_source_names(names: Sequence[str], listings: list[Listing]) -> list[Listing]:
    """Assign splits if every source is named as one (``train.zip test.zip``) and no listing states splits itself.

    As in a folder, a source other than the training one is left out if it has no labels.
    """
    stems = [_ENDS.sub("", name.lower()) for name in names]
    splits = splits_among(stems)
    unlike = len(splits) == len(names) and len({s.split for s in splits.values()}) > 1
    if not unlike or any(e.part is not None for listing in listings for e in listing.entries):
        return listings
    return [
        _as_split(name, splits[stem].split, listing) for name, stem, listing in zip(names, stems, listings, strict=True)
    ]


def _as_split(name: str, split: Part, listing: Listing) -> Listing:
    entries = [replace(e, part=split) for e in listing.entries]
    classes = [replace(c, part=split) for c in listing.classes]
    if entries or split == "train":
        return replace(listing, entries=entries, classes=classes)
    unlabeled = [r.path for r in listing.stray]
    remark = Remark("unlabeled", name, plural(len(unlabeled), "image"))
    return replace(listing, stray=[], unlabeled=unlabeled, remarks=[remark])


def read_split(text: str) -> Part | None:
    """Return the split that a table cell states, or None.

    >>> read_split("Train"), read_split("PrivateTest"), read_split("3")
    ('train', 'test', None)
    """
    name = split_name(text)
    return name.split if name is not None and name.certain else None


def nearest_split(name: str) -> str | None:
    """Return the split name that `name` seems to misspell, or None.

    >>> nearest_split("vaild"), nearest_split("bus")
    ('valid', None)
    """
    for word in SPLIT_NAMES:
        if sorted(word) == sorted(name.lower()):  # letters swapped
            return word
    close = difflib.get_close_matches(name.lower(), SPLIT_NAMES, n=1, cutoff=0.8)
    return close[0] if close else None
