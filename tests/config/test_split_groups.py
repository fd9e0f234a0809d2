"""The setting ``split.group``: every form that it may take, and one sentence for every other."""

from __future__ import annotations

import pytest

from sightline.config import resolve_config
from sightline.config.split_groups import GroupRule, parse_group_rule
from sightline.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("none", GroupRule("none")),
        ("near_duplicates", GroupRule("near_duplicates")),
        ("folder", GroupRule("folder")),
        ("column:patient id", GroupRule("column", "patient id")),
        ("column: patient ", GroupRule("column", "patient")),
        (r"pattern:(\d+): ", GroupRule("pattern", r"(\d+): ")),
        ("pattern:(?P<group>a)(b)", GroupRule("pattern", "(?P<group>a)(b)")),
    ],
)
def test_what_makes_a_group(text: str, rule: GroupRule) -> None:
    assert parse_group_rule(text) == rule
    assert resolve_config({"split": {"group": text}}).split.group == text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "split.group cannot be '': expected none, near_duplicates, folder, column:NAME or pattern:REGEX."),
        (
            "patient",
            "split.group cannot be 'patient': expected none, near_duplicates, folder, column:NAME or pattern:REGEX.",
        ),
        (
            "folder:x",
            "split.group cannot be 'folder:x': expected none, near_duplicates, folder, column:NAME or pattern:REGEX.",
        ),
        ("column", "split.group is 'column', which names no column: expected for example column:patient."),
        ("column: ", "split.group is 'column: ', which names no column: expected for example column:patient."),
        ("pattern:", r"split.group is 'pattern:', which names no pattern: expected for example pattern:(patient\d+)_."),
        (
            "pattern:(a",
            "split.group contains an invalid regular expression '(a': missing ), \
unterminated subpattern at position 0.",
        ),
        (
            "pattern:abc",
            "split.group contains 'abc', which has no capturing group: put parentheses around the part that \
identifies the group, as in pattern:(patient\\d+)_.",
        ),
    ],
)
def test_what_makes_none_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config({"split": {"group": text}})
    assert str(caught.value) == sentence
