"""JSON without NaN."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline import jsonio

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
