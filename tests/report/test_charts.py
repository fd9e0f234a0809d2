"""The geometry of charts: scales, ticks, paths and the layout of confusion matrices."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from sightline.metrics import most_confused_pairs
from sightline.report import charts


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (0, 0.037), (0, 8e4), (0.5, 14.5), (0, 1e-9), (0, 2.5e-323), (1, 1), (0, math.inf), (0, 2.7)],
)
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = charts.choose_ticks(low, high)
    assert 1 <= len(ticks) <= 7
    assert all(low - 1e-12 <= tick <= high for tick in ticks)
    assert ticks == sorted(set(ticks))


@pytest.mark.parametrize("epochs", [1, 2, 7, 60, 1000])
def test_epochs_have_whole_numbers(epochs: int) -> None:
    ticks = charts.choose_ticks(1, epochs, 6, integer=True)
    assert ticks
    assert all(isinstance(tick, int) and 1 <= tick <= epochs for tick in ticks)


def test_a_line_is_interrupted_where_a_value_is_missing() -> None:
    frame = charts.make_frame((0, 4), (0, 1))
    assert frame.path([0, 1, 2, 3, 4], [0, 1, None, math.nan, 0.5]).count("M") == 2
    assert frame.path([0, 1], [0, 1]) == f"M{frame.x(0):g} {frame.y(0):g}L{frame.x(1):g} {frame.y(1):g}"


def test_bins_have_the_interval_of_their_accuracy() -> None:
    (one,) = charts.add_bin_intervals([{"low": 0.9, "high": 1.0, "count": 10, "confidence": 0.95, "accuracy": 0.9}])
    low, high = one["interval"]
    assert (round(low, 3), round(high, 3)) == (0.596, 0.982)  # Wilson, 9 of 10


def make_matrix(count: int, errors: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    matrix = 50 * np.eye(count, dtype=np.int64)
    np.add.at(matrix, tuple(rng.integers(0, count, (2, errors))), 1)
    rows: list[list[int]] = matrix.tolist()
    return rows


@pytest.mark.parametrize("count", [2, 5, 30, 31, 100, 1000])
def test_a_matrix_of_any_number_of_classes_has_a_bounded_size(count: int) -> None:
    matrix = make_matrix(count, 20_000)
    layout = charts.lay_out_matrix([f"class {i}" for i in range(count)], matrix)
    assert layout["width"] <= 1150
    assert layout["height"] <= 1150
    assert len(layout["cells"]) <= max(2000, count)
    assert layout["named"] == (count <= 30)
    diagonal = [c for c in layout["cells"] if c["row"] == c["column"]]
    assert len(diagonal) == count
    counts = {(c["row"], c["column"]): c["count"] for c in layout["cells"]}
    omitted = [n for i, row in enumerate(matrix) for j, n in enumerate(row) if n and (i, j) not in counts]
    assert layout["hidden"] == len(omitted)
    assert bool(omitted) == (count >= 100)
    assert min(n for (i, j), n in counts.items() if i != j) >= max(omitted, default=1), "the largest are drawn"


def test_a_large_matrix_takes_the_memory_of_what_is_drawn() -> None:
    classes, matrix = [f"class {i}" for i in range(400)], [[1] * 400] * 400
    matrix[7] = [*matrix[7][:-1], 9]
    tracemalloc.start()
    layout, confusions = charts.lay_out_matrix(classes, matrix), charts.list_confusions(classes, matrix)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20, "not one object for each of the 160,000 cells"
    assert (len(layout["cells"]), layout["hidden"]) == (charts.MAX_CELLS, 160_000 - charts.MAX_CELLS)
    assert len(confusions) == charts.MAX_PAIRS
    largest = layout["cells"][400]
    assert (largest["row"], largest["column"], largest["count"]) == (7, 399, 9)
    assert confusions[0] == {"label": "class 7", "predicted": "class 399", "count": 9, "fraction": 9 / 408}
    assert [cell["row"] for cell in layout["cells"][:400]] == list(range(400)), "the diagonal first"


def test_the_first_confusion_of_the_table_is_that_of_the_summary() -> None:
    matrix = [[7, 2, 0], [0, 2, 2], [0, 0, 9]]  # a tie in images, not in their fraction of the class
    table = [(c["label"], c["predicted"], c["count"]) for c in charts.list_confusions("abc", matrix)]
    assert table == [("a", "b", 2), ("b", "c", 2)]
    assert table == [("abc"[i], "abc"[j], count) for i, j, count in most_confused_pairs(np.array(matrix))]


def test_levels_of_a_cell_follow_its_fraction_of_the_class() -> None:
    layout = charts.lay_out_matrix(["a", "b"], [[99, 1], [40, 60]])
    assert {(c["row"], c["column"]): c["level"] for c in layout["cells"]} == {
        (0, 0): 5,
        (0, 1): 1,
        (1, 0): 4,
        (1, 1): 2,
    }
