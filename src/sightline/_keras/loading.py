"""Why Keras does not load a model; it refuses in safe mode what would run code of the file or read other files."""

from __future__ import annotations

from sightline.errors import first_line

_WARNING = " This carries a potential risk"  # then Keras says how to turn its safe mode off


def explain_load_error(error: BaseException) -> str:
    """Return the reason, without Keras' advice to load unsafe files all the same."""
    reason, warning, _ = first_line(error).partition(_WARNING)
    if not warning:
        return reason
    return f"{reason.rstrip('.')}; code of a file is never run, nor another file read: use layers of Keras alone."
