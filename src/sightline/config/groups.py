"""The setting ``split.group``: what keeps images on one side of the split."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from sightline.errors import ConfigError

Plain = Literal["none", "near", "folder"]
Kind = Literal["none", "near", "folder", "column", "pattern"]


@dataclass(frozen=True, slots=True)
class GroupRule:
    """What makes images a group; `argument` is the column's name or the regular expression."""

    kind: Kind
    argument: str = ""


def group_rule(text: str, where: str = "split.group") -> GroupRule:
    r"""Return the rule that a setting states; raises `ConfigError` for anything else.

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
        raise ConfigError(f"{where} is {text!r}, without a {kind}: expected as in {example}.")
    raise ConfigError(f"{where} cannot be {text!r}: expected none, near, folder, column:NAME or pattern:REGEX.")


def _check_pattern(pattern: str, where: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ConfigError(f"{where} holds {pattern!r}, which is no regular expression: {error}.") from error
    if not groups:
        raise ConfigError(
            f"{where} holds {pattern!r}, which captures nothing: put parentheses around what names the group, as in "
            r"pattern:(patient\d+)_."
        )
