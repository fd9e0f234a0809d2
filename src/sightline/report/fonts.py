"""Find installed fonts for class names in any script.

matplotlib draws each character with the first of a text's fonts that has it. Its own font covers Latin, Greek, Cyrillic
and Arabic letters and many symbols, but no Chinese, Japanese or Korean and few emoji.
"""

from __future__ import annotations

import importlib.util
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import Any

DEFAULT_FONT = "DejaVu Sans"  # comes with matplotlib
PREFERRED = (  # among fonts with the same characters
    "Noto Sans CJK SC", "Source Han Sans SC", "Microsoft YaHei", "PingFang SC", "Hiragino Sans GB",
    "WenQuanYi Zen Hei", "Droid Sans Fallback", "SimHei", "Noto Sans CJK JP", "Yu Gothic", "Malgun Gothic",
    "Arial Unicode MS",
)  # fmt: skip
REGULAR = (400, "normal", "regular", "book")  # matplotlib warns about other weights
EXCLUDED = ("Last Resort", "Color Emoji")  # has boxes for every character; has images, which matplotlib cannot draw
INSTALL_HINT = "install a font that has them, as `apt install fonts-noto-cjk fonts-symbola` does on Debian and Ubuntu"


def missing_characters(text: str) -> frozenset[str]:
    """Return the characters of `text` that matplotlib's own font lacks, except line ends."""
    return frozenset(c for c in set(text) - {"\n"} if not _has_character(DEFAULT_FONT, c))


def fonts_for(characters: frozenset[str]) -> list[str]:
    """Return matplotlib's own font and any others that `characters` need."""
    return [DEFAULT_FONT, *_additional_fonts(characters)]


def undrawable_characters(characters: frozenset[str]) -> frozenset[str]:
    """Return the `characters` that no installed font can draw."""
    fonts = fonts_for(characters)
    return frozenset(c for c in characters if not any(_has_character(font, c) for font in fonts))


def undrawable_texts(texts: Iterable[str]) -> list[str]:
    """Return the `texts` with characters that no installed font can draw, ignoring marks without a width."""
    return [text for text in texts if any(not is_mark(c) for c in undrawable_characters(missing_characters(text)))]


def fonts_by_script() -> dict[str, str]:
    """Return the font for each of some scripts, "none" if no installed font supports it."""
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
    """Return whether a character has no width of its own: joiners, variation selectors, accents."""
    return unicodedata.category(character) in {"Cf", "Mn", "Me"}


def is_wide(character: str) -> bool:
    """Return whether a character is as wide as it is high: Chinese, Japanese, Korean and most emoji."""
    return unicodedata.east_asian_width(character) in {"W", "F"}


def count_columns(text: str) -> int:
    """Return the width of `text`, in letters of normal width."""
    return sum(2 if is_wide(character) else 1 for character in text)


@cache
def _additional_fonts(characters: frozenset[str]) -> tuple[str, ...]:
    """Return fonts for `characters`, each with at least one that the previous fonts lack."""
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
    """Add newly installed fonts to matplotlib's list, and return the number of fonts."""
    from matplotlib import font_manager

    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    added = 0
    for path in sorted(set(font_manager.findSystemFonts()) - known):
        with suppress(Exception):  # FreeType rejects some fonts with various errors
            font_manager.fontManager.addfont(path)
            added += 1
    return added


@cache
def _installed() -> dict[str, str]:
    """Return the file of each other upright font of regular weight by family, preferred ones first."""
    from matplotlib import font_manager

    files = {
        entry.name: entry.fname
        for entry in reversed(font_manager.fontManager.ttflist)  # the first of several wins, as in matplotlib
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
    """Return the font of a family; None if matplotlib cannot draw with it."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(_installed()[family])
    except (RuntimeError, OSError):  # damaged, or removed after matplotlib listed it
        return None
    return font if font.scalable else None
