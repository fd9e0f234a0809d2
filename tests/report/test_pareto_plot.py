"""The figure of a search."""

from __future__ import annotations

import io
from itertools import combinations
from typing import Any

import pytest
from PIL import Image

from sightline.report import plotting
from sightline.report.pareto_plot import ParetoPoint, plot_pareto


@pytest.mark.parametrize("count", [1, 12])
def test_any_number_of_candidates_can_be_drawn(count: int) -> None:
    points = [
        ParetoPoint(f"prune-{i}-int8", 1 - i / 50, 10**7 // 2**i, 8 / 1.5**i, 2**20 >> i, 2**24 >> i, i % 3 > 0, i == 4)
        for i in range(count)
    ]
    with Image.open(io.BytesIO(plot_pareto(points, 0.9))) as image:
        assert image.format == "PNG"
        assert min(image.size) > 400


def test_names_cover_neither_each_other_nor_a_point(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plotting, "render_png", figures.append)
    plot_pareto(
        [
            ParetoPoint("original", 0.4815, 29_767_000, 15.92, 7_440_419, 100_713_984, on_front=False),
            ParetoPoint("original-int8", 0.4815, 7_467_000, 1.86, 7_440_419, 100_713_984, on_front=True, best=True),
            ParetoPoint("shrink-head", 0.2593, 268_000, 5.91, 65_763, 93_339_840, on_front=True),
            ParetoPoint("shrink-head-2", 0.2963, 285_000, 5.16, 69_923, 93_343_936, on_front=True),
        ],
        0.28,
    )
    for axes in figures[0].axes:
        names = [text.get_window_extent() for text in axes.texts]
        assert len(names) == 4
        assert not any(a.overlaps(b) for a, b in combinations(names, 2))
        points = [point for group in axes.collections for point in axes.transData.transform(group.get_offsets())]
        assert not any(name.contains(*point) for name in names for point in points)
