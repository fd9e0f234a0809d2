"""What tests of figures share."""

from __future__ import annotations

from typing import Any

import pytest

from sightline.report import canvas


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The matplotlib figures that were made into PNG bytes, newest last."""
    found: list[Any] = []
    png = canvas.png

    def keep(figure: Any) -> bytes:
        found.append(figure)
        return png(figure)

    monkeypatch.setattr(canvas, "png", keep)
    return found
