"""The texts of the studio's page, in English and Chinese: ``messages.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

LANGUAGES = ("en", "zh")


@cache
def select(language: str) -> Mapping[str, str]:
    """Return the texts of one language by key."""
    texts = tomllib.loads(Path(__file__).with_name("messages.toml").read_text(encoding="utf-8"))
    return {key: of_languages[LANGUAGES.index(language)] for key, of_languages in texts.items()}


def choose_language(requested: str | None, accepted: str) -> str:
    """Return the language of the page: that which the address asks for, else the first known one of a header.

    >>> choose_language(None, "zh-CN,zh;q=0.9,en;q=0.8"), choose_language("en", "zh-CN"), choose_language(None, "fr")
    ('zh', 'en', 'en')
    """
    if requested in LANGUAGES:
        return requested
    for choice in accepted.split(","):
        language = choice.split(";")[0].strip().lower().partition("-")[0]
        if language in LANGUAGES:
            return language
    return LANGUAGES[0]
