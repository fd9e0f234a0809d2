"""The figure of a search."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from sightline.report.pareto_plot import ParetoPoint, plot_pareto


@pytest.mark.parametrize("count", [1, 12])
def test_any_number_of_candidates_can_be_drawn(count: int) -> None:
    points = [
        ParetoPoint(f"prune-{i}-int8", 1 - i / 50, 10**7 // 2**i, 8 / 1.5**i, 2**20 >> i, 2**24 >> i, i % 3 > 0, i == 4)
        for i in range(count)
    ]
    with Image.open(io.BytesIO(plot_pareto(points, 0.9, "A run"))) as image:
        assert image.format == "PNG"
        assert min(image.size) > 400
