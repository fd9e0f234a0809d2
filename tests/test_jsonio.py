"""Strict JSON: no NaN, no harmful input, typed values."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline import jsonio
from sightline.errors import ModelError
from sightline.intervals import Interval

values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return list(jsonio.read_records(path, lambda _: dict[str, Any]))


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
    assert json.loads(jsonio.dumps(value)) == value, "what was read can be written"


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
        ("[" + "{}," * 1_000_000 + "1]", "more than 1,000,000 lists and objects"),
    ],
    ids=range(9),
)
def test_what_would_harm_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        jsonio.loads(text)


def test_a_file_is_read_as_an_object_of_limited_size(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"a": 1}', encoding="utf-8")
    assert jsonio.read_object(path) == {"a": 1}
    with pytest.raises(ModelError, match=r"run\.json cannot be read: more than 4 bytes"):
        jsonio.read_object(path, max_bytes=4)
    for content in ("[1]", "[" * 100_000, "", "\0"):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ModelError, match=r"run\.json cannot be read"):
            jsonio.read_object(path)
    with pytest.raises(ModelError, match="No such file"):
        jsonio.read_object(tmp_path / "none.json")


@pytest.mark.skipif(os.name == "nt", reason="there are no named pipes in folders")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.json")
    for read in (jsonio.read_object, read_lines):
        with pytest.raises(ModelError, match="not a regular file"):
            read(tmp_path / "run.json")


def test_lines_name_the_first_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"a": "\\u2028"}\n\n{"b": 2}\n', encoding="utf-8")
    assert read_lines(path) == [{"a": "\u2028"}, {"b": 2}]
    for bad, why in (("[1]", "line 2 is not a JSON object"), ("{", "line 2: "), ("NaN", "line 2: NaN is not a finite")):
        path.write_text('{"a": 1}\n' + bad + "\n", encoding="utf-8")
        with pytest.raises(ModelError, match=why):
            read_lines(path)


def test_a_file_of_lines_has_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.jsonl"
    path.touch()
    os.truncate(path, jsonio.MAX_FILE_BYTES + 1)  # sparse
    with pytest.raises(ModelError, match=r"data\.jsonl cannot be read: it has 1,073,741,825 bytes, expected at most"):
        read_lines(path)
    monkeypatch.setattr(jsonio, "MAX_BYTES", 9)
    for line in ('{"a": 12345}\n', " " * 20):
        path.write_text('{"a": 1}\n' + line, encoding="utf-8")
        with pytest.raises(ModelError, match=r"data\.jsonl cannot be read: line 2 has more than 9 bytes"):
            read_lines(path)


# Values into dataclasses


@dataclass(frozen=True)
class Inner:
    low: float
    high: float = 1.0


class Facts(TypedDict, total=False):
    name: str
    counts: Mapping[str, int]
    inner: Inner | None


class Sizes(TypedDict):
    width: int
    height: NotRequired[int]


@dataclass(frozen=True)
class Outer:
    kind: Literal["a", "b"]
    items: tuple[Inner, ...]
    pair: tuple[int, int] = (1, 2)
    interval: Interval | None = None
    names: list[str] = field(default_factory=list)
    facts: Facts | None = None
    rest: Mapping[str, Any] = field(default_factory=dict)


WHOLE = {"kind": "a", "items": [{"low": 0}], "facts": {"name": "x", "inner": None, "other": [1]}, "rest": {"k": []}}


def test_only_keys_that_are_required_may_not_lack() -> None:
    assert jsonio.build(Sizes, {"width": 3}, "it") == {"width": 3}
    with pytest.raises(ModelError, match=r"height"):
        jsonio.build(Sizes, {"width": 3, "height": "tall"}, "it")
    with pytest.raises(ModelError, match="lacks width"):
        jsonio.build(Sizes, {"height": 3}, "it")


def test_values_become_what_the_annotations_say() -> None:
    built = jsonio.build(Outer, WHOLE, "it")
    assert built == Outer("a", (Inner(0.0),), facts={"name": "x", "inner": None, "other": [1]}, rest={"k": []})  # type: ignore[arg-type]  # unknown keys are kept
    assert isinstance(built.items[0].low, float)
    assert jsonio.build(Outer, json.loads(json.dumps(jsonio.to_plain(built))), "it") == built


def test_an_interval_is_a_pair_in_json() -> None:
    plain = jsonio.to_plain(Outer("a", (), interval=Interval(0.25, 0.5)))
    assert plain["interval"] == [0.25, 0.5]
    interval = jsonio.build(Outer, plain, "it").interval
    assert isinstance(interval, Interval)
    assert interval.high == 0.5


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"kind": "c"}, "kind is 'c', expected 'a' or 'b'"),
        ({"kind": ["a"]}, r"kind is \['a'\], expected 'a' or 'b'"),
        ({"items": "text"}, "items is 'text', expected a list"),
        ({"items": [{}]}, r"items\.0 lacks low"),
        ({"items": [{"low": "1"}]}, r"items\.0\.low is '1', expected a number"),
        ({"items": [{"low": True}]}, r"items\.0\.low is True, expected a number"),
        ({"items": [{"low": 1, "x": 1}]}, r"items\.0 has an unknown key 'x'"),
        ({"items": [7]}, r"items\.0 is 7, expected an object"),
        ({"pair": [1]}, r"pair is \[1\], expected a list of 2 values"),
        ({"pair": [1, 2.0]}, r"pair\.1 is 2\.0, expected a whole number"),
        ({"names": [None]}, r"names\.0 is None, expected text"),
        ({"facts": {"counts": {"x": "1"}}}, r"facts\.counts\.x is '1', expected a whole number"),
        ({"facts": {"inner": []}}, r"facts\.inner is \[\], expected an object"),
        ({"rest": 1}, "rest is 1, expected an object"),
        ({"more": 1}, "it has an unknown key 'more'"),
        ({"kind": "x" * 1000}, r"kind is 'x{36}\.\.\., expected"),
    ],
    ids=range(16),
)
def test_what_does_not_fit_is_named(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ModelError, match=rf"^run\.json cannot be read: {why}"):
        jsonio.build(Outer, WHOLE | change, "run.json")


def test_lines_are_built_and_the_wrong_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"low": 1}\n\n{"low": 2, "high": 3}\n', encoding="utf-8")
    assert jsonio.read_records(path, lambda _: Inner) == (Inner(1.0), Inner(2.0, 3.0))
    path.write_text('{"low": 1}\n\n{"high": 3}\n', encoding="utf-8")
    with pytest.raises(ModelError, match=r"lines\.jsonl, line 3, cannot be read: it lacks low\."):
        jsonio.read_records(path, lambda _: Inner)


def test_what_nests_deeper_than_any_of_ours_is_refused() -> None:
    for text in ("[" * 64 + "]" * 64, json.dumps([[1]] * 1000)):
        jsonio.loads(text)
    deep: list[str | bytes] = ["[" * 66 + "]" * 66, b'{"a":' * 66 + b"1" + b"}" * 66]
    for content in deep:
        with pytest.raises(ValueError, match="nested too deeply"):
            jsonio.loads(content)
