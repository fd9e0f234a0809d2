"""The vocabulary: code, messages and docs use the words of Keras, scikit-learn and the literature, in American English.

The checks are plain functions of a text, so that the last tests can show that they fail.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src" / "sightline"
SUFFIXES = {".j2", ".md", ".py", ".toml", ".yml"}

# Refused words, in identifiers (`picture_size`, `PictureSize`) and in text, and their replacements.
REFUSED_WORDS = {
    "picture": "image", "pictures": "images", "pictured": "shown",
    "thaw": "unfreeze", "thaws": "unfreezes", "thawed": "unfrozen", "thawing": "unfreezing",
    "judge": "evaluate", "judges": "evaluates", "judged": "evaluated", "judging": "evaluating",
    "judgement": "evaluation", "judgements": "evaluations", "judgment": "evaluation", "judgments": "evaluations",
    "hear": "receive", "hears": "receives", "heard": "received",
    "stranger": "out-of-distribution image", "strangers": "out-of-distribution images",
    "golden": "reference", "watcher": "callback", "watchers": "callbacks",
}  # fmt: skip

# Refused patterns of text and their replacements. Spelling is American.
REFUSED_PATTERNS = {
    r"\bgr[e]y": "gray", r"colo[u]r": "color", r"\bcent[r]e": "center", r"neighb[o]ur": "neighbor",
    r"behavi[o]ur": "behavior", r"\bfav[o]ur": "favor", r"licen[c]e\b": "license", r"label[l]ed\b": "labeled",
    r"model[l]ing\b": "modeling", r"catalog[u]e": "catalog", r"artef[a]ct": "artifact", r"whil[s]t": "while",
    r"(?:normal|optim|initial|organ|recogn|summar|serial|regular|standard|minim|maxim|synchron|memor|visual|general)"
    r"is(?:e|es|ed|er|ing|ation)\b": "-ize",
    r"quantis(?:e|es|ed|er|ing|ation)\b": "quantize",
    r"\bso man[y] (?:images|classes|checkpoints)\b": "number of images",
    r"\blies her[e]\b": "is cached, is present",
    r"(?<!there )\b(?:is|are) no (?:imag[e]s?|numbe[r]s?|file[s])\b": "is not an image, is not a number",
    r"\bhands? on a se[t]\b": "returns a set",
    r"\b(?:train|training|validation|test) par[t]s?\b": "split",
    r"\bshare of (?:the )?(?:imag[e]s|answer[s]|right|class)": "fraction",
    r"\bfigures of (?:th[e] )?(?:test|validation|run)\b": "metrics",
    r"\bpreprocessing contrac[t]|\bimage contrac[t]": "preprocessing spec",
    r"\b(?:named|names|naming) rightl[y]\b": "classified correctly",
}  # fmt: skip

# The same for function names, mainly of tests, read as text: `test_a_pipe_is_no_file` as "a pipe is no file".
REFUSED_PHRASES = REFUSED_PATTERNS | {
    r"(?<!there )\b(?:is|are) no (?!more |longer |less |worse )": "is not, is rejected",
    r"\b(?:is|are|being) told\b": "is reported, is distinguished",
    r"\blawful\b": "valid",
}

# Names of variables, attributes, parameters and functions that do not describe their value.
REFUSED_NAMES = {
    "asked", "drawn", "found", "given", "heard", "held", "judged", "kept", "lent", "made", "said", "share", "shares",
    "shown", "stated", "told", "wanted", "part",
}  # fmt: skip


class Allowed(NamedTuple):
    """Lines that may use a refused word: those of one file that match a pattern."""

    file: str
    pattern: str
    reason: str


ALLOWED = (
    Allowed("tests/test_vocabulary.py", "", "states the words themselves"),
    Allowed("src/sightline/data/sources/folder_layout.py", r"WRAPPER_NAMES|UNLABELED_WORDS", "folder names of users"),
    Allowed("src/sightline/data/sources/file_labels.py", r"\"picture\"", "file names of cameras"),
    Allowed("tests/inference/test_bundle.py", r"golden", "a bundle of the first schema, which is refused"),
    Allowed("tests/data/sources/test_manifest.py", r"Retriever, Golden", "a breed of dogs"),
)


def list_files() -> list[str]:
    """Return the files of code and text under version control; Chinese pages and generated files excluded."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout, so git cannot list the files")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True, text=True).stdout.split("\0")
    return [
        name
        for name in names
        if Path(name).suffix in SUFFIXES
        and "zh-CN" not in name
        and "tests/corpus" not in name
        and (REPOSITORY / name).is_file()
    ]


def split_words(text: str) -> set[str]:
    """Return the words of a text in lower case, with identifiers split into words."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)}


def find_word_faults(file: str, text: str, allowed: tuple[Allowed, ...] = ALLOWED) -> Iterator[str]:
    """Yield a line for each refused word or pattern in a text, with its replacement."""
    lowered = text.lower()  # lower case is faster to search, and most texts have no fault
    patterns = [pattern for pattern in REFUSED_PATTERNS if re.search(pattern, lowered)]
    words = {word for word in REFUSED_WORDS if word in lowered}
    if not patterns and not words:
        return
    exceptions = [re.compile(entry.pattern) for entry in allowed if entry.file == file]
    for number, line in enumerate(text.splitlines(), start=1):
        if any(pattern.search(line) for pattern in exceptions):
            continue
        for word in sorted(split_words(line) & words):
            yield f"{file}:{number}: {word!r}: write {REFUSED_WORDS[word]!r}"
        for pattern in patterns:
            if match := re.search(pattern, line, re.IGNORECASE):
                yield f"{file}:{number}: {match[0]!r}: write {REFUSED_PATTERNS[pattern]!r}"


def find_name_faults(file: str, text: str) -> Iterator[str]:
    """Yield a line for each variable, parameter, attribute or function whose name does not describe its value."""
    nodes = list(ast.walk(ast.parse(text)))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    sentences = "\n".join(read_name(node.name) for node in functions).lower()  # as `find_word_faults` searches texts
    phrases = [phrase for phrase in REFUSED_PHRASES if re.search(phrase, sentences)]
    for node in nodes:
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                pass
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                pass
            case _:
                continue
        if name.lstrip("_") in REFUSED_NAMES:
            yield f"{file}:{node.lineno}: {name!r}: name the value by the noun that it is"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for phrase in phrases:
                if match := re.search(phrase, read_name(name), re.IGNORECASE):
                    yield f"{file}:{node.lineno}: {match[0]!r} in {name!r}: write {REFUSED_PHRASES[phrase]!r}"


def read_name(name: str) -> str:
    """Return the name of a function as text: `test_a_pipe_is_no_file` as "a pipe is no file"."""
    return name.removeprefix("test_").replace("_", " ")


def list_public_classes(text: str) -> list[str]:
    """Return the public classes at the top level of a module."""
    return [n.name for n in ast.parse(text).body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]


def test_words_and_spelling() -> None:
    faults = [
        fault for file in list_files() for fault in find_word_faults(file, (REPOSITORY / file).read_text("utf-8"))
    ]
    assert not faults, "\n".join(faults)


def test_values_are_named_by_nouns() -> None:
    faults = [
        fault
        for file in list_files()
        if file.endswith(".py")
        for fault in find_name_faults(file, (REPOSITORY / file).read_text("utf-8"))
    ]
    assert not faults, "\n".join(faults)


def test_no_two_public_classes_share_a_name() -> None:
    counts = Counter(name for path in SOURCE.rglob("*.py") for name in list_public_classes(path.read_text("utf-8")))
    assert [name for name, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("entry", ALLOWED, ids=lambda entry: entry.file)
def test_every_exception_is_used(entry: Allowed) -> None:
    others = tuple(other for other in ALLOWED if other is not entry)
    assert list(find_word_faults(entry.file, (REPOSITORY / entry.file).read_text("utf-8"), others))


# The checks must be able to fail.


@pytest.mark.parametrize(
    ("text", "replacement"),
    [
        ("class PictureSize:", "'image'"),
        ("def load_pictures(): ...", "'images'"),
        ('raise DataError("This PICTURE is damaged.")', "'image'"),
        ("stages that thaw more layers", "'unfreeze'"),
        ("golden images", "'reference'"),
        ("the colours of a grey image", "'color'"),
        ("Batch normalisation", "'-ize'"),
        ("an unlabelled folder", "'labeled'"),
        ("accuracy on the test part", "'split'"),
        ("help='So many images; default 10.'", "'number of images'"),
        ("the file is no image", "'is not an image, is not a number'"),
        ("for what is no image, and for planes", "'is not an image, is not a number'"),
    ],
)
def test_a_refused_word_is_reported(text: str, replacement: str) -> None:
    faults = list(find_word_faults("src/sightline/new.py", f"x = 1\n{text}\n"))
    assert faults
    assert all(fault.startswith("src/sightline/new.py:2: ") for fault in faults)
    assert any(fault.endswith(f"write {replacement}") for fault in faults)


@pytest.mark.parametrize(
    "text", ["an image of the test split", "a part of the batch", "Path.parts", "gray", "there is no image"]
)
def test_a_word_of_the_field_is_accepted(text: str) -> None:
    assert list(find_word_faults("src/sightline/new.py", text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "found = 1",
        "def f(made): ...",
        "self.given = 1",
        "def told(): ...",
        "x = [said for said in y]",
        "async def kept(): ...",
        "def _kept(): ...",
        "def test_true_is_no_number(): ...",
        "def test_a_pipe_is_no_source(): ...",
        "def test_the_damage_is_told(): ...",
        "def test_a_lawful_range(): ...",
        "def test_a_missing_validation_part_stays(): ...",
    ],
)
def test_a_name_that_says_nothing_is_reported(text: str) -> None:
    assert list(find_name_faults("new.py", text))


@pytest.mark.parametrize(
    "text",
    [
        "from hypothesis import given",
        "@given(x=1)\ndef f(x): ...",
        "index = find()",
        "f(made=1)",
        "def test_there_is_no_split(): ...",
    ],
)
def test_a_noun_and_another_librarys_name_are_accepted(text: str) -> None:
    assert list(find_name_faults("new.py", text)) == []


def test_classes_are_listed() -> None:
    assert list_public_classes("class A: ...\nclass _B: ...\ndef f():\n    class C: ...") == ["A"]
