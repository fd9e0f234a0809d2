"""Plotting helpers: figures without a display, their PNG and SVG bytes, colors and text styles."""

from __future__ import annotations

import io
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any
from xml.sax.saxutils import escape

from sightline.errors import check_installed, require
from sightline.escaping import printable
from sightline.report import fonts

PURPOSE = "Drawing figures"
TRAIN, VALIDATION = "#1f6feb", "#d9480f"
INK, GRID = "#24292f", "#d0d7de"
MAX_NAME_LENGTH = 28  # columns of a class name; a Chinese character takes two
MARGIN = 0.1  # inches
LARGEST_SVG = 1_000_000  # bytes; figures with so many points are smaller as PNG


@dataclass(frozen=True, slots=True)
class RenderedFigure:
    """A figure; a notebook shows it, and ``Path("figure.png").write_bytes(figure.png)`` saves it.

    Attributes:
        png: The content of a PNG file.
        svg: The content of an SVG file with text that browsers draw in their own fonts; None if there is no SVG.
    """

    png: bytes
    svg: bytes | None = None

    @property
    def files(self) -> dict[str, bytes]:
        """The content of each file of the figure, by suffix."""
        files = {"png": self.png, "svg": self.svg}
        return {suffix: content for suffix, content in files.items() if content is not None}

    def __repr__(self) -> str:
        return f"RenderedFigure({len(self.png):,} bytes of PNG)"

    def _repr_png_(self) -> bytes:
        return self.png


def check_packages() -> None:
    """Raise `MissingExtraError` if the packages for `make_figure` are missing; call this before long computations."""
    check_installed("matplotlib", purpose=PURPOSE)


def load_packages() -> None:
    """Import the packages for `make_figure` and `render`; raise `MissingExtraError` without matplotlib."""
    for module in ("matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg"):
        require(module, PURPOSE)


def make_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure, sized in inches; raise `MissingExtraError` without matplotlib."""
    figures = require("matplotlib.figure", PURPOSE)
    # Without pyplot: no screen, no global state.
    return figures.Figure(figsize=(width, height), dpi=120, layout="constrained")


def render_png(figure: Any) -> bytes:
    """Return the figure as the bytes of a PNG file, large enough for all of its text."""
    undrawable = _choose_fonts(figure)
    return _png(figure, _lay_out(figure, undrawable), undrawable)


def render(figure: Any) -> RenderedFigure:
    """Return the figure as PNG, and as SVG unless that is very large; the same figure gives the same bytes."""
    undrawable = _choose_fonts(figure)
    box = _lay_out(figure, undrawable)
    pixels, vector = _png(figure, box, undrawable), _svg(figure, box, undrawable)
    return RenderedFigure(pixels, vector if len(vector) <= LARGEST_SVG else None)


@dataclass(frozen=True, slots=True)
class _UndrawableText:
    """Text with characters that no installed font draws: the labels of an axis, or a single text (`axis` is None)."""

    texts: list[Any]
    words: list[str]
    characters: frozenset[str]
    axis: Any = None

    def write(self, sign: Callable[[str], str]) -> None:
        """Replace each character that no font draws by its `sign`, and marks without a width by nothing."""
        signs = {ord(c): "" if fonts.is_mark(c) else sign(c) for c in self.characters}
        self._set([word.translate(signs) for word in self.words])

    def restore(self) -> None:
        """Restore the original text."""
        self._set(self.words)

    def _set(self, words: list[str]) -> None:
        if self.axis is None:
            self.texts[0].set_text(words[0])
            return
        from matplotlib.ticker import FixedFormatter

        self.axis.set_major_formatter(FixedFormatter(words))  # an axis recreates its labels whenever it is drawn


def _choose_fonts(figure: Any) -> list[_UndrawableText]:
    """Set the fonts that each text needs; return the texts with characters that no installed font draws."""
    from matplotlib.axis import Axis
    from matplotlib.text import Text

    undrawable: list[_UndrawableText] = []
    ticks: set[Any] = set()
    for axis in figure.findobj(Axis):
        labels = axis.get_ticklabels()
        ticks.update(labels)
        if lost := frozenset().union(*map(_choose_font, labels)):
            undrawable.append(_UndrawableText(labels, [label.get_text() for label in labels], lost, axis))
    others = []
    for text in figure.findobj(Text):
        if text not in ticks:
            text.set_text(printable(text.get_text(), keep="\n"))  # control characters would make the SVG invalid
            others.append((text, _choose_font(text)))
    return undrawable + [_UndrawableText([text], [text.get_text()], lost) for text, lost in others if lost]


def _choose_font(text: Any) -> frozenset[str]:
    """Set the fonts that a text needs; return the characters that none of them has."""
    characters = fonts.missing_characters(text.get_text())
    if characters:
        text.set_fontfamily(fonts.fonts_for(characters))
    return fonts.undrawable_characters(characters)


def _placeholder(character: str) -> str:
    """Return a character of about the same width that matplotlib's own font has."""
    return "\N{EM DASH}" if fonts.is_wide(character) else "n"


def _lay_out(figure: Any, undrawable: Sequence[_UndrawableText]) -> Any:
    """Fix the layout, and return its bounding box; long names are never cut."""
    for words in undrawable:
        words.write(_placeholder)
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
    figure.set_layout_engine(None)  # avoids a useless new layout for each file
    return figure.get_tightbbox().padded(MARGIN)


def _png(figure: Any, box: Any, undrawable: Sequence[_UndrawableText]) -> bytes:
    buffer = io.BytesIO()
    for words in undrawable:
        words.write(lambda _: "\N{WHITE SQUARE}")
    figure.savefig(buffer, format="png", bbox_inches=box)
    for words in undrawable:
        words.restore()
    return buffer.getvalue()


def _svg(figure: Any, box: Any, undrawable: Sequence[_UndrawableText]) -> bytes:
    """Draw placeholders as wide as the text, then insert the text: matplotlib would draw and measure boxes instead."""
    import matplotlib as mpl

    buffer = io.StringIO()
    for number, words in enumerate(undrawable):
        words.write(_placeholder)
        for at, text in enumerate(words.texts):
            text.set_gid(f"words-{number}-{at}")
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sightline"}):
        figure.savefig(buffer, format="svg", bbox_inches=box, metadata={"Date": None})
    svg = buffer.getvalue()
    for number, words in enumerate(undrawable):
        words.restore()
        for at, word in enumerate(words.words):
            svg = _insert_text(svg, f"words-{number}-{at}", word)
    own_font = f"'{fonts.DEFAULT_FONT}'"
    return svg.replace(own_font, f"{own_font}, Verdana, sans-serif").encode()  # Verdana has the same widths


def _insert_text(svg: str, name: str, word: str) -> str:
    """Write `word`, line by line, into the group `name` of an SVG file."""
    lines = iter(word.split("\n"))

    def group(match: re.Match[str]) -> str:
        return re.sub(r"(<text[^>]*>)[^<]*", lambda text: text[1] + escape(next(lines, "")), match[0])

    return re.sub(rf'<g id="{name}">.*?</g>', group, svg, flags=re.DOTALL)


def fonts_for(text: str = "") -> list[str]:
    """Return the fonts for drawing `text`."""
    return fonts.fonts_for(fonts.missing_characters(text))


def text_style(size: float = 10) -> dict[str, Any]:
    """Return the style for user text, in which a dollar sign does not start a formula."""
    return {"color": INK, "family": [fonts.DEFAULT_FONT], "fontsize": size, "parse_math": False}


def style_axes(axes: Any, x: str = "", y: str = "") -> None:
    """Label the axes of a chart, and draw a grid instead of the frame at the top and right."""
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.grid(color=GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def shorten(name: str) -> str:
    """Return `name` on one line, leaving out the middle if it is long, as names mostly differ at the ends.

    >>> shorten("a class name that some people write"), shorten("二零二四年春季在温室里拍摄的玫瑰花")
    ('a class name t… people write', '二零二四年春季…拍摄的玫瑰花')
    """
    name = printable(" ".join(name.split()))
    if fonts.count_columns(name) <= MAX_NAME_LENGTH:
        return name
    end = _take_columns(name[::-1], MAX_NAME_LENGTH // 2 - 1)[::-1]
    return f"{_take_columns(name, MAX_NAME_LENGTH // 2)}…{end}"


def _take_columns(text: str, columns: int) -> str:
    """Return as much of the start of `text` as fits into `columns` letters of normal width."""
    ends = list(accumulate(fonts.count_columns(character) for character in text))
    return text[: bisect_right(ends, columns)]
