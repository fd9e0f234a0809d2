"""Which installed fonts have which characters, to draw class names in any script if a font supports it.

matplotlib takes each character from the first of a text's fonts that has it. Its own font covers Latin, Greek, Cyrillic
and Arabic letters and many signs, but no Chinese, Japanese or Korean and few emoji.
"""

from __future__ import annotations

import importlib.util
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import Any

DEFAULT_FONT = "DejaVu Sans"  # comes with matplotlib
PREFERRED = (  # of several fonts with the same characters
    "Noto Sans CJK SC", "Source Han Sans SC", "Microsoft YaHei", "PingFang SC", "Hiragino Sans GB",
    "WenQuanYi Zen Hei", "Droid Sans Fallback", "SimHei", "Noto Sans CJK JP", "Yu Gothic", "Malgun Gothic",
    "Arial Unicode MS",
)  # fmt: skip
REGULAR = (400, "normal", "regular", "book")  # for another weight matplotlib would complain
EXCLUDED = ("Last Resort", "Color Emoji")  # boxes for every character; images, which matplotlib cannot draw
INSTALL_HINT = "install a font that has them, as `apt install fonts-noto-cjk fonts-symbola` does on Debian and Ubuntu"


def missing_characters(text: str) -> frozenset[str]:
    """Return the characters of `text` that matplotlib's own font lacks, line ends apart."""
    return frozenset(c for c in set(text) - {"\n"} if not _has_character(DEFAULT_FONT, c))


def fonts_for(characters: frozenset[str]) -> list[str]:
    """Return matplotlib's own font and those that are needed besides for `characters`."""
    return [DEFAULT_FONT, *_additional_fonts(characters)]


def undrawable_characters(characters: frozenset[str]) -> frozenset[str]:
    """Return those of the `characters` that no installed font draws."""
    fonts = fonts_for(characters)
    return frozenset(c for c in characters if not any(_has_character(font, c) for font in fonts))


def undrawable_texts(texts: Iterable[str]) -> list[str]:
    """Return those of `texts` with characters that no installed font draws; marks without a width are none."""
    return [text for text in texts if any(not is_mark(c) for c in undrawable_characters(missing_characters(text)))]


def fonts_by_script() -> dict[str, str]:
    """Return the font that draws each of some scripts, "none" where no installed one does."""
    fonts = {}
    for script, sample in {"Chinese": "猫", "Japanese": "ね", "Korean": "묘", "emoji": "🐈"}.items():
        fonts[script] = next(
            (f for f in reversed(fonts_for(missing_characters(sample))) if _has_character(f, sample)), "none"
        )
    return fonts


def describe_fonts() -> str:
    """Describe which fonts render class names in figures."""
    if importlib.util.find_spec("matplotlib") is None:
        return "matplotlib is not installed"
    return "; ".join(f"{script}: {font}" for script, font in fonts_by_script().items())


def is_mark(character: str) -> bool:
    """Tell whether a character has no width of its own: joiners, variation selectors, accents."""
    return unicodedata.category(character) in {"Cf", "Mn", "Me"}


def is_wide(character: str) -> bool:
    """Tell whether a character is as wide as it is high: Chinese, Japanese, Korean and most emoji."""
    return unicodedata.east_asian_width(character) in {"W", "F"}


def count_columns(text: str) -> int:
    """Return how many letters of the usual width take as much room as `text`."""
    return sum(2 if is_wide(character) else 1 for character in text)


@cache
def _additional_fonts(characters: frozenset[str]) -> tuple[str, ...]:
    """Return the fonts, each with one of `characters` that those before lack."""
    chosen, uncovered = _cover_characters(characters)
    if any(not is_mark(c) for c in uncovered) and _add_new_fonts():
        _installed.cache_clear()
        chosen, _ = _cover_characters(characters)
    return tuple(chosen)


def _cover_characters(characters: frozenset[str]) -> tuple[list[str], set[str]]:
    chosen, uncovered = [], set(characters)
    for name in _installed() if characters else ():
        if here := {c for c in uncovered if _has_character(name, c)}:
            chosen.append(name)
            uncovered -= here
        if not uncovered:
            break
    return chosen, uncovered


@cache
def _add_new_fonts() -> int:
    """Tell matplotlib, which keeps a list, of the fonts that were installed since; return how many there are."""
    from matplotlib import font_manager

    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    added = 0
    for path in sorted(set(font_manager.findSystemFonts()) - known):
        with suppress(Exception):  # FreeType refuses some, each in its own way
            font_manager.fontManager.addfont(path)
            added += 1
    return added


@cache
def _installed() -> dict[str, str]:
    """Return the file of each other upright font of regular weight by its family, the preferred ones first."""
    from matplotlib import font_manager

    files = {
        entry.name: entry.fname
        for entry in reversed(font_manager.fontManager.ttflist)  # as matplotlib does, the first of several
        if entry.style == "normal"
        and entry.weight in REGULAR
        and not any(fragment in entry.name for fragment in EXCLUDED)
    }
    first = [name for name in (DEFAULT_FONT, *PREFERRED) if name in files]
    return {name: files[name] for name in (*first, *sorted(files.keys() - set(first)))}


def _has_character(family: str, character: str) -> bool:
    font = _load_font(family)
    return font is not None and font.get_char_index(ord(character)) != 0


@cache
def _load_font(family: str) -> Any:
    """Return the font of a family; None for one that matplotlib cannot draw with."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(_installed()[family])
    except (RuntimeError, OSError):  # removed since matplotlib listed it, or damaged
        return None
    return font if font.scalable else None
