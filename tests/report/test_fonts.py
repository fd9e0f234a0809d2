"""Words in any script: drawn by whichever installed font can, as text in SVG, as a box in PNG where none can."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.font_manager import FontEntry
from matplotlib.ft2font import FT2Font

from sightline.report import fonts, plotting
from sightline.report.plotting import RenderedFigure

SVG = "{http://www.w3.org/2000/svg}"
LETTERS = {name: set(FT2Font(font_manager.findfont(name)).get_charmap()) for name in ("DejaVu Sans", "STIXGeneral")}
ONLY_IN_STIX = chr(max(LETTERS["STIXGeneral"] - LETTERS["DejaVu Sans"]))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No font that was found in another test."""

    def clear() -> None:
        for cached in (fonts._additional_fonts, fonts._installed, fonts._load_font, fonts._add_new_fonts):
            cached.cache_clear()

    clear()
    yield
    clear()


@pytest.fixture
def own_fonts(monkeypatch: pytest.MonkeyPatch) -> list[FontEntry]:
    """A machine with matplotlib's own fonts alone, whose list a test may change."""
    manager: Any = font_manager.fontManager
    entries = [e for e in manager.ttflist if "mpl-data" in e.fname]
    monkeypatch.setattr(manager, "ttflist", entries)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [e.fname for e in entries])
    manager._findfont_cached.cache_clear()
    return entries


def make_labeled_figure(*names: str, title: str = "") -> Any:
    figure = plotting.make_figure(4, 3)
    axes = figure.subplots()
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", **plotting.text_style())
    axes.set_yticks(range(len(names)), names, **plotting.text_style())
    axes.set_ylabel("truth")
    axes.set_title(title, **plotting.text_style(12))
    return figure


def svg_texts(svg: bytes | None) -> list[str]:
    assert svg is not None
    return [e.text or "" for e in ET.fromstring(svg).iter(f"{SVG}text")]  # noqa: S314  # our own file


def test_each_character_is_drawn_by_a_font_that_has_it(own_fonts: list[FontEntry]) -> None:
    figure = make_labeled_figure("plain", f"x{ONLY_IN_STIX}")
    rendered = plotting.render(figure)
    plain, other = (label.get_fontfamily() for label in figure.axes[0].get_xticklabels())
    assert plain == ["DejaVu Sans"]
    assert other[0] == "DejaVu Sans"
    assert len(other) == 2
    assert ONLY_IN_STIX in "".join(svg_texts(rendered.svg))
    assert fonts.undrawable_characters(fonts.missing_characters(ONLY_IN_STIX)) == frozenset()


def test_what_no_font_draws_is_text_in_svg_and_a_box_in_png(own_fonts: list[FontEntry]) -> None:
    names = ("猫 图片", "划痕 <轻微> & 其他", "ok", "🐈\N{VARIATION SELECTOR-17}")
    figure = make_labeled_figure(*names, title="豆\n第二行 $1")
    saved: dict[str, list[str]] = {}
    save, axes = figure.savefig, figure.axes[0]

    def savefig(*args: Any, **options: Any) -> None:
        labels = [label.get_text() for label in axes.get_xticklabels()]
        saved[options["format"]] = [*labels, axes.get_title()]
        save(*args, **options)

    figure.savefig = savefig
    rendered = plotting.render(figure)  # a warning about a glyph would be an error here
    words = svg_texts(rendered.svg)
    assert [w for w in words if w in names] == [*names, *names]
    assert {"豆", "第二行 $1", "truth"} <= set(words)
    assert "\N{EM DASH}" not in "".join(words)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == list(names)
    assert rendered.png.startswith(b"\x89PNG")
    assert saved["png"] == ["□ □□", "□□ <□□> & □□", "ok", "□", "□\n□□□ $1"]


def test_words_have_the_room_that_a_browser_needs(own_fonts: list[FontEntry]) -> None:
    def edge(*names: str) -> float:
        """The right end of the labels of the vertical axis, from the left of the figure, in points."""
        svg = plotting.render(make_labeled_figure(*names)).svg
        assert svg is not None
        ends = [e for e in ET.fromstring(svg).iter(f"{SVG}text") if e.text == names[0]]  # noqa: S314
        return max(float(e.attrib["x"]) for e in ends if "rotate(-0" in e.attrib["transform"])

    one, ten = edge("猫"), edge("猫" * 10)
    assert ten - one == pytest.approx(9 * 10, abs=3)  # ten points wide each, at ten points high


def test_fonts_of_the_reader_come_after_ours() -> None:
    svg = plotting.render(make_labeled_figure("cat")).svg
    assert svg is not None
    assert re.search(rb"font-family: 'DejaVu Sans', Verdana, sans-serif", svg)


def test_marks_without_a_width_need_no_font(own_fonts: list[FontEntry]) -> None:
    heart = "\N{HEAVY BLACK HEART}\N{VARIATION SELECTOR-16}"
    assert fonts.undrawable_texts(["a", "é", "猫", heart, "a\N{ZERO WIDTH JOINER}b"]) == ["猫"]


def test_a_font_that_was_installed_since_is_found(own_fonts: list[FontEntry], monkeypatch: pytest.MonkeyPatch) -> None:
    new = next(e.fname for e in own_fonts if e.name == "STIXGeneral" and e.style == "normal" and e.weight == 400)
    own_fonts[:] = [e for e in own_fonts if e.name == "DejaVu Sans"]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: ["/nowhere/damaged.ttf", new])
    assert fonts.fonts_for(frozenset(ONLY_IN_STIX)) == ["DejaVu Sans", "STIXGeneral"]


def test_fonts_that_matplotlib_cannot_draw_with_are_passed_over(
    own_fonts: list[FontEntry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "damaged.ttf"
    path.write_bytes(b"no font")
    own_fonts[:0] = [
        FontEntry(fname=name, name=f"A {name}", style="normal", weight=400) for name in (str(path), "gone.ttf")
    ]
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    assert not any("Last Resort" in name for name in fonts._installed())
    assert fonts.undrawable_texts(["猫", "x"]) == ["猫"]
    assert fonts.fonts_by_script() == {"Chinese": "none", "Japanese": "none", "Korean": "none", "emoji": "none"}


def test_a_figure_of_very_many_points_is_pixels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plotting, "LARGEST_SVG", 1000)
    assert plotting.render(make_labeled_figure("a")).svg is None


def test_same_figure_same_svg() -> None:
    def draw() -> RenderedFigure:
        figure = make_labeled_figure("猫", "b")
        figure.axes[0].imshow(np.arange(4).reshape(2, 2))
        return plotting.render(figure)

    assert draw() == draw()
