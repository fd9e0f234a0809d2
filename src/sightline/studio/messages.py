"""The texts of the studio's page, in English and Chinese: ``messages.toml``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

LANGUAGES = ("en", "zh")
_NUMBER = r"-?\d[\d.e+-]*"
_SLICE = re.compile(
    rf"(?P<property>.+) (?:up to (?P<below>{_NUMBER})|above (?P<above>{_NUMBER})|"
    rf"(?P<low>{_NUMBER}) to (?P<high>{_NUMBER})|unset)"
)

_VARIABLE = re.compile(r"(PATH|NAME|COUNT|NUMBER|REASON|OWNER|KEY|VALUE|RECIPE|SPLIT)")
_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""  # the `repr` of a text, up to its closing quote
_ERROR, _WHY = "error-", "why-"  # whole sentences, and reasons within them why an image cannot be read
_NOTE = "note-"  # of comparisons
MAX_SENTENCE = 4000  # characters; longer sentences are not translated, as matching takes quadratic time


@cache
def select(language: str) -> Mapping[str, str]:
    """Return the texts in one language by key."""
    texts = tomllib.loads(Path(__file__).with_name("messages.toml").read_text(encoding="utf-8"))
    return {key: of_languages[LANGUAGES.index(language)] for key, of_languages in texts.items()}


def translate_slice(name: str, texts: Mapping[str, str]) -> str:
    """Translate the name of a slice, as made by `find_slices`, into the language of `texts`.

    The names and values of a table's columns stay as they are.

    >>> [translate_slice(name, select("zh")) for name in ("aspect ratio 0.5 to 1.5", "weight above 9", "camera old")]
    ['宽高比 0.5 至 1.5', 'weight > 9', 'camera old']
    """
    match = _SLICE.fullmatch(name)
    if match is None:
        return name
    numbers = {key: value for key, value in match.groupdict().items() if value is not None}
    column = numbers.pop("property")
    text = texts[f"slice-{next(iter(numbers), 'unset')}"]
    for key, value in numbers.items():
        text = text.replace(key.upper(), value)
    return text.replace("NAME", texts.get(f"property-{column.replace(' ', '-')}", column))


def translate_note(note: str, texts: Mapping[str, str]) -> str:
    """Translate the note of a comparison, as made by `compare_runs`, into the language of `texts`; keep other notes.

    >>> translate_note("only 12 of their test images are in both", select("zh"))
    '只有 12 张图片同时在双方的测试集中'
    """
    return _translate(note, texts, _NOTE)


@cache
def _list_patterns(prefix: str) -> dict[str, re.Pattern[str]]:
    """Return a pattern for each English text whose key has this prefix, by key; the most specific come first."""
    english = {key: text for key, text in select(LANGUAGES[0]).items() if key.startswith(prefix)}
    by_length = sorted(english.items(), key=lambda item: -len(_VARIABLE.sub("", item[1])))
    return {key: re.compile(_make_pattern(text), re.DOTALL) for key, text in by_length}


def _make_pattern(text: str) -> str:
    values = {"NAME": _QUOTED}
    return "".join(
        f"(?P<{word}>{values.get(word, '.+?')})" if i % 2 else re.escape(word)
        for i, word in enumerate(_VARIABLE.split(text))
    )


def translate_error(sentence: str, texts: Mapping[str, str]) -> str:
    """Translate the sentence of an error into the language of `texts`; a sentence not in the catalog is kept.

    >>> translate_error("runs/a is not training.", select("zh"))
    'runs/a 没有在训练。'
    """
    return sentence if len(sentence) > MAX_SENTENCE else _translate(sentence, texts, _ERROR)


def _translate(sentence: str, texts: Mapping[str, str], prefix: str) -> str:
    for key, pattern in _list_patterns(prefix).items():
        if match := pattern.fullmatch(sentence):
            values = match.groupdict()
            if "REASON" in values:
                values["REASON"] = _translate(values["REASON"], texts, _WHY)
            if "SPLIT" in values:
                values["SPLIT"] = texts.get(values["SPLIT"], values["SPLIT"])
            return "".join(values.get(word, word) for word in _VARIABLE.split(texts[key]))
    return sentence


def choose_language(requested: str | None, accepted: str) -> str:
    """Return the language of a page: the one requested in the URL, or else the first supported one in the header.

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
