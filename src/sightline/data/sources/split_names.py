"""Recognize splits by their usual names, in any spelling."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from sightline.data.types import Split

_WORDS: Mapping[Split, tuple[str, ...]] = {
    "train": ("train", "training", "训练", "训练集", "訓練", "訓練集"),
    "validation": ("validation", "valid", "val", "dev", "验证", "验证集", "驗證", "驗證集"),
    "test": ("test", "testing", "eval", "evaluation", "测试", "测试集", "測試", "測試集"),
}
SPLIT_NAMES: Mapping[str, Split] = {word: split for split, words in _WORDS.items() for word in words}
_EVALUATION_WORDS = {"eval", "evaluation"}  # next to a test split, these are the validation split
_FILE_SUFFIXES = re.compile(
    r"(\.(zip|tar|gz|bz2|xz|tgz|tbz2|txz|csv|tsv|json|jsonl|ndjson|manifest|txt|lst|parquet|arrow|feather))+$"
)
_LONGEST_FIRST = sorted(SPLIT_NAMES, key=len, reverse=True)


@dataclass(frozen=True, slots=True)
class SplitName:
    """A name that denotes a split by a `word`; `remainder` is the rest of the name.

    `certain` if the word is separate from the remainder (``seg_train``) rather than joined to it (``trainset``, but
    also ``strain``); `exact` if there is no remainder.
    """

    split: Split
    word: str
    remainder: str
    certain: bool

    @property
    def exact(self) -> bool:
        """Whether the name is the word alone."""
        return not self.remainder


def parse_split_name(name: str) -> SplitName | None:
    """Return the split that a name denotes, or None.

    >>> parse_split_name("seg_train").split, parse_split_name("验证集").split, parse_split_name("bus")
    ('train', 'validation', None)
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z])(?=\d)", " ", name)
    words = [word for word in re.split(r"[\W_]+", spaced.casefold()) if word]
    matches = [word for word in words if word in SPLIT_NAMES]
    if matches:
        if len({SPLIT_NAMES[word] for word in matches}) > 1:
            return None
        remainder = "".join(word for word in words if word != matches[0])
        return SplitName(SPLIT_NAMES[matches[0]], matches[0], remainder, certain=True)
    joined = "".join(words)
    for word in _LONGEST_FIRST:
        if joined.startswith(word) or joined.endswith(word):
            remainder = joined.removeprefix(word) if joined.startswith(word) else joined.removesuffix(word)
            return SplitName(SPLIT_NAMES[word], word, remainder, certain=False)
    return None


def find_splits(names: Collection[str]) -> dict[str, SplitName]:
    """Return the splits among `names`, by name.

    A joined word counts only if another split has a name with the same remainder: ``trainset`` and ``testset`` count,
    ``strain`` and ``contest`` do not. ``eval`` is the test split, or the validation split next to a test split.
    """
    candidates = {name: split for name in names if (split := parse_split_name(name)) is not None}
    remainders = {(s.remainder, s.split) for s in candidates.values()}
    result = {
        name: s for name, s in candidates.items()
        if s.certain or any(remainder == s.remainder and split != s.split for remainder, split in remainders)
    }  # fmt: skip
    if any(s.split == "test" and s.word not in _EVALUATION_WORDS for s in result.values()):
        for name, s in result.items():
            if s.word in _EVALUATION_WORDS:
                result[name] = SplitName("validation", s.word, s.remainder, s.certain)
    return result


def find_source_splits(names: Sequence[str]) -> list[Split | None]:
    """Return the split of each source if all, or folders around them, are named as splits, and not all as the same.

    >>> find_source_splits(["train.zip", "test1.zip"]), find_source_splits(["train.zip", "bus.zip"])
    (['train', 'test'], [None, None])
    >>> find_source_splits(["train/cat", "eval/cat"]), find_source_splits(["test1/cat", "test2/cat"])
    (['train', 'test'], [None, None])
    """
    folders = [_find_split_folder(name) for name in names]
    for words in (folders, [_FILE_SUFFIXES.sub("", PurePosixPath(name).name.lower()) for name in names]):
        splits = find_splits(words)
        if all(word in splits for word in words) and len({s.split for s in splits.values()}) > 1:
            return [splits[word].split for word in words]
    return [None] * len(names)


def parse_split(text: str) -> Split | None:
    """Return the split that a table cell states, or None.

    >>> parse_split("Train"), parse_split("PrivateTest"), parse_split("3")
    ('train', 'test', None)
    """
    name = parse_split_name(text)
    return name.split if name is not None and name.certain else None


def find_folder_split(key: str) -> Split | None:
    """Return the split of the outermost folder in a path that is named like a split, or None.

    >>> find_folder_split("camvid/val/images/1.jpg"), find_folder_split("train.jpg")
    ('validation', None)
    """
    return parse_split(_find_split_folder(key))


def _find_split_folder(key: str) -> str:
    """Return the name of the outermost folder in a path that is named like a split; "" if there is none."""
    return next((folder for folder in PurePosixPath(key).parts[:-1] if parse_split(folder)), "")


def suggest_split(name: str) -> str | None:
    """Return the split name that `name` seems to misspell, or None.

    >>> suggest_split("vaild"), suggest_split("bus")
    ('valid', None)
    """
    for word in SPLIT_NAMES:
        if sorted(word) == sorted(name.lower()):  # letters swapped
            return word
    matches = difflib.get_close_matches(name.lower(), SPLIT_NAMES, n=1, cutoff=0.8)
    return matches[0] if matches else None
