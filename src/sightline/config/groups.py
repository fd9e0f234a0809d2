"""The setting ``split.group``: which images must stay in the same split."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from sightline.errors import ConfigError

Plain = Literal["none", "near", "folder"]
Kind = Literal["none", "near", "folder", "column", "pattern"]


@dataclass(frozen=True, slots=True)
class GroupRule:
    """How images are grouped; `argument` is the column name or the regular expression."""

    kind: Kind
    argument: str = ""


def group_rule(text: str, where: str = "split.group") -> GroupRule:
    r"""Parse a value of ``split.group``; raises `ConfigError` for an invalid one.

    >>> group_rule(r"pattern:(patient\d+)_")
    GroupRule(kind='pattern', argument='(patient\\d+)_')
    """
    if text in get_args(Plain):
        return GroupRule(cast("Kind", text))
    kind, _, argument = text.partition(":")
    argument = argument.strip() if kind == "column" else argument
    if kind == "column" and argument:
        return GroupRule("column", argument)
    if kind == "pattern" and argument:
        _check_pattern(argument, where)
        return GroupRule("pattern", argument)
    if kind in {"column", "pattern"}:
        example = "column:patient" if kind == "column" else r"pattern:(patient\d+)_"
        raise ConfigError(f"{where} is {text!r}, which names no {kind}: expected for example {example}.")
    raise ConfigError(f"{where} cannot be {text!r}: expected none, near, folder, column:NAME or pattern:REGEX.")


def _check_pattern(pattern: str, where: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ConfigError(f"{where} contains an invalid regular expression {pattern!r}: {error}.") from error
    if not groups:
        raise ConfigError(
            f"{where} contains {pattern!r}, which has no capturing group: put parentheses around the part that "
            r"identifies the group, as in pattern:(patient\d+)_."
        )
