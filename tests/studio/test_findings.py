"""The names of findings: each kind that images can have is named in the languages of the page."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from sightline.data import checks
from sightline.data.checks.remarks import REMARK_FINDINGS
from sightline.studio import contents, messages

MAKERS = {"image_finding", "group_finding", "Finding"}
ON_OTHER_THINGS = {
    "ambiguous-masks", "class-imbalance", "co-occurrence", "empty-classes", "group-candidates", "guessed-encoding",
    "invalid-masks", "labels-from-names", "labels-from-table", "labels-never-alone", "mask-folders", "masks",
    "missing-classes", "missing-files", "missing-masks", "nested-classes", "not-images", "numeric-class-names",
    "one-class", "repeated-members", "several-labels", "similar-class-names", "small-classes", "split-folders",
    "split-named-class", "splits-from-lists", "unexpected-folder", "unlabeled-folders", "unread-labels",
    "unread-splits", "unused-masks",
    "class-masks", "class-names", "copied-folders", "missing-value-names", "not-downloaded", "numbered-folders",
    "unread-formats", "decimal-class-names", "unread-class-names", "unread-columns", "joined-class-names",
}  # fmt: skip
"""Kinds of findings on classes, folders, tables, and files that are not listed."""


NAMED = {key.removeprefix("finding-") for key in messages.select("en") if key.startswith("finding-")}


def list_kinds(file: Path) -> Iterator[str]:
    """Yield the kinds of the findings that a module makes."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    constants: dict[str, object] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign):
            target, value = statement.targets[0], statement.value
            pairs = [(target, value)]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = list(zip(target.elts, value.elts, strict=True))
            constants |= {
                name.id: of_name.value
                for name, of_name in pairs
                if isinstance(name, ast.Name) and isinstance(of_name, ast.Constant)
            }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MAKERS and node.args:
            kind = node.args[0]
            if isinstance(kind, ast.Constant):
                yield str(kind.value)
            elif isinstance(kind, ast.Name) and kind.id in constants:
                yield str(constants[kind.id])


def test_every_kind_of_finding_on_images_is_named() -> None:
    files = [*Path(checks.__file__).parent.glob("*.py"), Path(contents.__file__)]
    kinds = {kind for file in files for kind in list_kinds(file)} | set(REMARK_FINDINGS)
    assert {"near-duplicates", "blurred", "suspected-label-errors", "masks"} <= kinds
    assert kinds - ON_OTHER_THINGS == NAMED, "name it in messages.toml"
    assert not ON_OTHER_THINGS - kinds


@pytest.mark.parametrize("language", messages.LANGUAGES)
def test_names_of_findings_are_not_the_words_of_the_command_line(language: str) -> None:
    names = {kind: messages.select(language)[f"finding-{kind}"] for kind in NAMED}
    assert len({*names.values()}) == len(names), "a filter has each once"
    for kind, name in names.items():
        assert "-" not in name, kind
        assert language == "en" or not name.isascii(), kind
