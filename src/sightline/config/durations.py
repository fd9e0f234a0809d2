"""Durations as text, such as ``10m``: the setting ``train.time_limit``."""

from __future__ import annotations

import re

from sightline.errors import ConfigError

SECONDS = {"h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(
    r"(?:(?P<h>\d{1,6}(?:\.\d{1,6})?)h)?(?:(?P<m>\d{1,6}(?:\.\d{1,6})?)m)?(?:(?P<s>\d{1,9}(?:\.\d{1,6})?)s)?"
)


def parse_duration(text: str, key: str = "train.time_limit") -> float:
    """Return the seconds of a duration; raises `ConfigError` for an invalid one, or one of zero.

    >>> parse_duration("10m"), parse_duration("1h30m"), parse_duration("90s")
    (600.0, 5400.0, 90.0)
    """
    match = _DURATION.fullmatch(text.strip())
    seconds = sum(float(match[unit] or 0) * SECONDS[unit] for unit in SECONDS) if match else 0.0
    if not seconds:
        raise ConfigError(f"{key} cannot be {text[:100]!r}: expected a duration such as 90s, 10m or 1h30m.")
    return seconds


def check_time_limit(text: str, key: str) -> None:
    """Raise `ConfigError` unless `text` is a duration or empty."""
    if text:
        parse_duration(text, key)


def format_duration(seconds: float) -> str:
    """Return a number of seconds as a duration in whole seconds.

    >>> format_duration(5400), format_duration(95.6), format_duration(0.2)
    ('1h30m', '1m36s', '0s')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "m"), (rest, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number) or "0s"
