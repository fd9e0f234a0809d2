"""Draw empty figures where no test looks at them: drawing takes half the time of a tiny training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest

from sightline.report import plotting
from sightline.report.plotting import RenderedFigure

NAMES = ("render", "render_png")


@cache
def draw_empty() -> RenderedFigure:
    figure = plotting.make_figure(2, 2)
    figure.subplots()
    return plotting.render(figure)


@contextmanager
def empty_figures() -> Iterator[dict[str, Any]]:
    """Build each figure but draw an empty one instead; yield the replaced functions of `plotting`."""
    originals = {name: getattr(plotting, name) for name in NAMES}
    empty = draw_empty()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plotting, "render", lambda _: empty)
        patch.setattr(plotting, "render_png", lambda _: empty.png)
        yield originals
