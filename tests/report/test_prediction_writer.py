"""Rows of predictions: their columns, and that each is out before the next image is predicted."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator

import pytest

from sightline.inference.masks import MaskPrediction
from sightline.inference.results import ClassProbability, Decision, Prediction
from sightline.report.prediction_writer import MaskRowFormat, RowFormat, is_prediction_file, write_csv, write_jsonl

Write = Callable[..., Iterator[Prediction]]
CLASSES = ("2", "a,b", "path")  # names that look like columns or need quotes


def make_prediction(path: str, *probabilities: float, decision: Decision | None = None) -> Prediction:
    ranked = sorted(zip(CLASSES, probabilities, strict=True), key=lambda pair: -pair[1])
    top = tuple(ClassProbability(label, p) for label, p in ranked)
    return Prediction(path, top[0].label, top[0].probability, top, decision=decision)


PREDICTIONS = [
    make_prediction("x.png", 0.1, 0.7, 0.2, decision=Decision("set", ("a,b", "path"), 1.25)),
    Prediction("broken, too.png", error="cannot be opened"),
    make_prediction("y.png", 1e-9, 0.0, 1 - 1e-9, decision=Decision("abstain", None, 9.0, is_ood=True)),
]


def rows(layout: RowFormat) -> list[dict[str, str]]:
    file = io.StringIO()
    assert list(write_csv(PREDICTIONS, layout, file)) == PREDICTIONS
    return list(csv.DictReader(io.StringIO(file.getvalue())))


def test_csv_has_one_class_unless_more_are_asked_for() -> None:
    one = rows(RowFormat())
    assert [list(row) for row in one] == [["path", "label", "probability", "error"]] * 3
    assert one[0] == {"path": "x.png", "label": "a,b", "probability": "0.700000", "error": ""}
    assert one[1] == {"path": "broken, too.png", "label": "", "probability": "", "error": "cannot be opened"}
    two = rows(RowFormat(top=2))
    assert list(two[0]) == ["path", "label", "probability", "label_2", "probability_2", "error"]
    assert (two[0]["label_2"], two[0]["probability_2"]) == ("path", "0.200000")
    assert two[1]["error"] == "cannot be opened", "in its own column in every layout"


def test_csv_has_a_column_for_each_class_and_what_to_make_of_the_answer() -> None:
    every = rows(RowFormat(classes=CLASSES, decisions=True))
    assert list(every[0]) == [
        *("path", "label", "probability", "decision", "set", "ood_score", "is_ood"),
        *("probability:2", "probability:a,b", "probability:path", "error"),
    ]
    assert [float(every[0][f"probability:{label}"]) for label in CLASSES] == [0.1, 0.7, 0.2]
    assert (every[0]["decision"], json.loads(every[0]["set"]), every[0]["ood_score"]) == (
        "set",
        ["a,b", "path"],
        "1.25",
    )
    assert float(every[2]["probability:2"]) == 1e-9, "small ones are not rounded to zero"
    assert (every[2]["decision"], every[2]["set"]) == ("abstain", "")
    assert [row["is_ood"] for row in every] == ["false", "", "true"]
    assert all(every[1][column] == "" for column in list(every[1])[1:-1])
    assert every[1]["error"] == "cannot be opened"


def test_csv_of_masks_has_the_quality_and_no_column_that_is_always_empty() -> None:
    top = (ClassProbability("sky", 0.6),)
    mask = Prediction("a.png", "sky", 0.6, top, decision=Decision("mask", None, None), labels=("sky",), quality=0.5)
    file = io.StringIO()
    list(write_csv([mask, Prediction("b.png", error="broken")], RowFormat(decisions=True, quality=True), file))
    assert list(csv.reader(io.StringIO(file.getvalue()))) == [
        ["path", "label", "probability", "decision", "quality", "error"],
        ["a.png", "sky", "0.600000", "mask", "0.500000", ""],
        ["b.png", "", "", "", "", "broken"],
    ]


def test_json_lines_hold_the_top_classes_and_on_demand_all() -> None:
    file = io.StringIO()
    assert list(write_jsonl(PREDICTIONS, RowFormat(top=1, classes=CLASSES), file)) == PREDICTIONS
    first, second, _ = map(json.loads, file.getvalue().splitlines())
    assert first["top"] == [{"label": "a,b", "probability": 0.7}]
    assert first["probabilities"] == {"2": 0.1, "a,b": 0.7, "path": 0.2}
    assert second == {"path": "broken, too.png", "error": "cannot be opened"}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk", "utf-8"])
def test_json_lines_are_valid_in_any_encoding(encoding: str) -> None:
    name = "é 茶 🍵 \udc80.png"
    file = io.TextIOWrapper(io.BytesIO(), encoding, "backslashreplace")
    assert list(write_jsonl([make_prediction(name, 0.1, 0.7, 0.2)], RowFormat(), file))
    content = file.buffer.getvalue().decode(encoding)
    assert json.loads(content)["path"] == name
    assert ("茶" in content) == (encoding == "utf-8")


class Pipe(io.StringIO):
    """A file that counts what a reader at its other end sees."""

    seen = 0

    def flush(self) -> None:
        self.seen = self.getvalue().count("\n")


@pytest.mark.parametrize(("write", "header"), [(write_csv, 1), (write_jsonl, 0)])
def test_each_row_is_out_before_the_next_image_is_predicted(write: Write, header: int) -> None:
    pipe = Pipe()

    def slowly() -> Iterator[Prediction]:
        for number, prediction in enumerate(PREDICTIONS):
            assert pipe.seen == (number + header if number else 0)
            yield prediction

    assert len(list(write(slowly(), RowFormat(), pipe))) == 3
    assert pipe.seen == 3 + header


@pytest.mark.parametrize("layout", [RowFormat(), RowFormat(top=3), RowFormat(2, CLASSES, decisions=True)])
@pytest.mark.parametrize("write", [write_csv, write_jsonl])
def test_a_result_is_known_again(write: Write, layout: RowFormat) -> None:
    file = io.StringIO()
    list(write(PREDICTIONS, layout, file))
    assert is_prediction_file(file.getvalue().encode()[:100])
    assert not is_prediction_file(b"path,label\nx.png,cat\n")
    assert not is_prediction_file(b"\x89PNG")


@pytest.mark.parametrize("classes", [("sky", "road"), ("sky, clear", "road")])
def test_rows_of_masks_have_the_area_of_each_class(classes: tuple[str, ...]) -> None:
    masks = [
        MaskPrediction("=a.png", areas=((classes[1], 0.25),), quality=0.5, decision="abstain", file="-a.png"),
        MaskPrediction("b.png", error="=cannot be opened"),
    ]
    file = io.StringIO()
    assert list(write_csv(masks, MaskRowFormat(classes), file)) == masks
    assert is_prediction_file(file.getvalue().encode()[:100])
    header, first, second = csv.reader(io.StringIO(file.getvalue()))
    assert header == ["path", f"area:{classes[0]}", "area:road", "quality", "decision", "file", "error"]
    assert first == ["'=a.png", "0.000000", "0.250000", "0.500000", "abstain", "'-a.png", ""]
    assert second == ["b.png", "", "", "", "", "", "'=cannot be opened"]


def test_a_name_becomes_no_formula_and_a_number_stays_one() -> None:
    top = (ClassProbability("+SUM(A1)", 0.75), ClassProbability("-cat", 0.25))
    good = Prediction("=1+1", "+SUM(A1)", 0.75, top, decision=Decision("class", None, -3.0))
    bad = Prediction("@x", error="=cannot be opened")
    for raw in (False, True):
        file = io.StringIO()
        assert list(write_csv([good, bad], RowFormat(2, ("-cat",), decisions=True, raw=raw), file)) == [good, bad]
        _, first, second = csv.reader(io.StringIO(file.getvalue()))
        mark = "" if raw else "'"
        assert first == [
            f"{mark}=1+1", f"{mark}+SUM(A1)", "0.750000", f"{mark}-cat", "0.250000",
            "class", "", "-3", "false", "0.25", "",
        ]  # fmt: skip
        assert (second[0], second[-1]) == (f"{mark}@x", f"{mark}=cannot be opened")
