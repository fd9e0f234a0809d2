"""Untrusted text is escaped on terminals, in tables and in spreadsheets."""

from __future__ import annotations

import csv
import io
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline import jsonio
from sightline.escaping import CsvWriter, escape_cell, escape_formula, printable
from strategies import hostile_text

DIRECTION = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def find_control_characters(text: str) -> list[str]:
    """Return the characters that a terminal may interpret, according to the Unicode database."""
    return [
        letter
        for letter in text
        if unicodedata.category(letter) in {"Cc", "Zl", "Zp", "Cs"}
        or unicodedata.bidirectional(letter) in DIRECTION
        or letter in "\u061c\u200e\u200f"
    ]


@given(hostile_text())
def test_no_control_character_remains(text: str) -> None:
    escaped = printable(text)
    assert find_control_characters(escaped) == []
    assert len(escaped.splitlines()) <= 1
    assert printable(escaped) == escaped
    escaped.encode()  # lone surrogates cannot be encoded
    if not find_control_characters(text):
        assert escaped == text


@given(hostile_text())
def test_json_keeps_its_value(text: str) -> None:
    ((key, (value,)),) = json.loads(printable(jsonio.dumps({text: [text]}))).items()
    assert key == value
    assert key.encode("utf-16", "surrogatepass") == text.encode("utf-16", "surrogatepass"), (
        "two surrogates make one character"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("a\r\n\tb\x7f", "a\\r\\n\\tb\\u007f"),
        ("\x9b2J", "\\u009b2J"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\u2028b\udcff", "a\\u2028b\\udcff"),
        ("C:\\new\\x1b 图 \u0645\u06cc\u200c\u062e \U0001f469\u200d\U0001f4bb", None),  # joiners are parts of words
    ],
)
def test_escapes_show_the_original_characters(text: str, expected: str | None) -> None:
    assert printable(text) == (text if expected is None else expected)


def test_line_ends_can_be_kept() -> None:
    assert printable("a\n\x1b[2J\r\n", keep="\n") == "a\n\\x1b[2J\\r\n"


@given(st.lists(st.lists(hostile_text(), min_size=1, max_size=4), max_size=4))
def test_a_csv_file_has_the_rows_that_were_written(rows: list[list[str]]) -> None:
    file = io.StringIO()
    CsvWriter(file).write_rows(rows)
    assert list(csv.reader(io.StringIO(file.getvalue(), newline=""))) == rows
    assert len(list(csv.reader(io.StringIO(file.getvalue(), newline=None)))) == len(rows), "with universal newlines too"


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_a_formula_becomes_text(sign: str) -> None:
    assert escape_formula(f"{sign}1+1") == f"'{sign}1+1"
    assert escape_formula(f"a{sign}") == f"a{sign}"


def test_numbers_stay_numbers() -> None:
    assert [escape_cell(value) for value in (-1.5, -2, None, "-2")] == [-1.5, -2, None, "'-2"]
