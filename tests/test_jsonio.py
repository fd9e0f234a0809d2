"""JSON without NaN."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline import jsonio
from sightline.errors import ModelError

values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def refuse(name: str) -> None:
    raise AssertionError(name)


@given(values)
def test_what_json_has_comes_back(value: Any) -> None:
    assert json.loads(jsonio.dumps(value), parse_constant=refuse) == value
    assert jsonio.dumps(value) == json.dumps(value, ensure_ascii=False)


@given(values, st.sampled_from([math.nan, math.inf, -math.inf]))
def test_what_json_lacks_is_null(value: Any, bad: float) -> None:
    text = jsonio.dumps({"a": [value, (bad, 1.5)], "b": {"c": bad}})
    assert json.loads(text, parse_constant=refuse) == {"a": [value, [None, 1.5]], "b": {"c": None}}


def test_options_are_those_of_json() -> None:
    assert jsonio.dumps({"b": "猫", "a": 1}, sort_keys=True, ensure_ascii=True) == '{"a": 1, "b": "\\u732b"}'
    with pytest.raises(TypeError):
        jsonio.dumps({1, 2})


@given(st.text() | values.map(json.dumps) | st.binary())
def test_any_text_is_a_value_or_a_value_error(text: str | bytes) -> None:
    try:
        value = jsonio.loads(text)
    except ValueError:
        return
    assert json.loads(jsonio.dumps(value)) == value, "what was taken can be written"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("NaN", "not a finite number"),
        ("-Infinity", "not a finite number"),
        ("1e999", "not a finite number"),
        ("1" + "0" * 400, "too large an integer"),
        ("1" + "0" * 10_000, "too large an integer"),
        ("18446744073709551616", "too large an integer"),
    ],
    ids=range(8),
)
def test_what_would_harm_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        jsonio.loads(text)


def test_a_file_is_read_as_an_object_of_limited_size(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"a": 1}', encoding="utf-8")
    assert jsonio.read(path) == {"a": 1}
    with pytest.raises(ModelError, match=r"run\.json cannot be read: expected a JSON object of at most 0 MiB"):
        jsonio.read(path, most=4)
    for content in ("[1]", "[" * 100_000, "", "\0"):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ModelError, match=r"run\.json cannot be read"):
            jsonio.read(path)
    with pytest.raises(ModelError, match="No such file"):
        jsonio.read(tmp_path / "none.json")


@pytest.mark.skipif(os.name == "nt", reason="there are no named pipes in folders")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.json")
    for read in (jsonio.read, jsonio.read_lines):
        with pytest.raises(ModelError, match="not a regular file"):
            read(tmp_path / "run.json")


def test_lines_name_the_first_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"a": "\\u2028"}\n\n{"b": 2}\n', encoding="utf-8")
    assert jsonio.read_lines(path) == [{"a": "\u2028"}, {"b": 2}]
    for bad, why in (("[1]", "line 2 is no JSON object"), ("{", "line 2: "), ("NaN", "line 2: NaN is not a finite")):
        path.write_text('{"a": 1}\n' + bad + "\n", encoding="utf-8")
        with pytest.raises(ModelError, match=why):
            jsonio.read_lines(path)
