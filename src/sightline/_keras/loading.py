"""Explain why Keras refuses a model: safe mode refuses whatever would run the file's code or read other files."""

from __future__ import annotations

from sightline.errors import first_line

_DETAILS = " during loading"  # then the names of the weights of the layer
_WARNING = " This carries a potential risk"  # then Keras says how to turn its safe mode off


def explain_load_error(error: BaseException) -> str:
    """Return the reason, without Keras' advice to load unsafe files all the same.

    Of several layers that do not fit, it is the reason that Keras gives for one of them.
    """
    reason, warning, _ = first_line(error).partition(_WARNING)
    if not warning:
        example = [line for line in str(error).splitlines()[1:] if line] if reason.endswith(":") else []
        return example[0].partition(_DETAILS)[0] if example else reason
    return f"{reason.rstrip('.')}; code in a file is never run, and no other file is read: use only Keras layers."
