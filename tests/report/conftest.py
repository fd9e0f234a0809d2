"""What tests of figures share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sightline.report import plotting


@pytest.fixture
def figures_drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The matplotlib figures that were made into bytes, newest last."""
    figures: list[Any] = []

    def keeping(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def keep(figure: Any) -> Any:
            figures.append(figure)
            return make(figure)

        return keep

    for name in ("render_png", "render"):
        monkeypatch.setattr(plotting, name, keeping(getattr(plotting, name)))
    return figures
