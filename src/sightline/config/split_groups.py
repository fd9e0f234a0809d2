"""The setting ``split.group``: which images must stay in the same split."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from sightline.errors import ConfigError

SimpleGroupKind = Literal["none", "near_duplicates", "folder"]
GroupKind = Literal["none", "near_duplicates", "folder", "column", "pattern"]


@dataclass(frozen=True, slots=True)
class GroupRule:
    """How images are grouped; `argument` is a column name or a regular expression."""

    kind: GroupKind
    argument: str = ""


def parse_group_rule(text: str, key: str = "split.group") -> GroupRule:
    r"""Parse a value of ``split.group``; raises `ConfigError` for an invalid one.

    >>> parse_group_rule(r"pattern:(patient\d+)_")
    GroupRule(kind='pattern', argument='(patient\\d+)_')
    """
    if text in get_args(SimpleGroupKind):
        return GroupRule(cast("SimpleGroupKind", text))
    kind, _, argument = text.partition(":")
    argument = argument.strip() if kind == "column" else argument
    if kind == "column" and argument:
        return GroupRule("column", argument)
    if kind == "pattern" and argument:
        _check_pattern(argument, key)
        return GroupRule("pattern", argument)
    if kind in {"column", "pattern"}:
        example = "column:patient" if kind == "column" else r"pattern:(patient\d+)_"
        raise ConfigError(f"{key} is {text!r}, which names no {kind}: expected for example {example}.")
    raise ConfigError(
        f"{key} cannot be {text!r}: expected none, near_duplicates, folder, column:NAME or pattern:REGEX."
    )


def _check_pattern(pattern: str, key: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ConfigError(f"{key} contains an invalid regular expression {pattern!r}: {error}.") from error
    if not groups:
        raise ConfigError(
            f"{key} contains {pattern!r}, which has no capturing group: put parentheses around the part that "
            r"identifies the group, as in pattern:(patient\d+)_."
        )
