"""What all figures share: an empty figure without a screen, its PNG bytes, colours, and how words are written."""

from __future__ import annotations

import io
import warnings
from functools import cache
from typing import Any

from sightline.errors import require

TRAIN, VALIDATION = "#1f6feb", "#d9480f"
INK, GRID = "#24292f", "#d0d7de"
LONGEST = 28  # letters of a class name
EAST_ASIAN = (
    "Noto Sans CJK SC", "Source Han Sans SC", "Microsoft YaHei", "PingFang SC", "Hiragino Sans GB",
    "WenQuanYi Zen Hei", "Droid Sans Fallback", "SimHei", "Noto Sans CJK JP", "Yu Gothic", "Malgun Gothic",
    "Arial Unicode MS",
)  # fmt: skip


def blank(width: float, height: float) -> Any:
    """Return an empty matplotlib figure, in inches; raises `MissingExtraError` without matplotlib."""
    figures = require("matplotlib.figure", "Drawing figures")
    # Without pyplot: no screen, no global state.
    return figures.Figure(figsize=(width, height), dpi=120, layout="constrained")


def png(figure: Any) -> bytes:
    """Return the figure as the bytes of a PNG file, large enough for every word in it."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)  # a box stands in its place
        figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.1)  # long names are never cut
    return buffer.getvalue()


@cache
def families() -> list[str]:
    """Return matplotlib's own font, which knows no Chinese, and those of this machine that do."""
    from matplotlib import font_manager

    here = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in EAST_ASIAN if name in here)]


def words(size: float = 10) -> dict[str, Any]:
    """Return how words of the user's are written: a dollar sign starts no formula."""
    return {"color": INK, "family": families(), "fontsize": size, "parse_math": False}


def short(name: str) -> str:
    """Return `name` on one line, its middle left out where it is long: what differs stands at the ends mostly."""
    name = " ".join(name.split())
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 + 1 :]}"
