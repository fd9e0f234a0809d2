"""Explain why Keras refuses a model: safe mode refuses anything that would run the file's code or read other files."""

from __future__ import annotations

import re

from sightline.errors import first_line

_DETAILS = " during loading"  # followed by the names of the layer's weights
_WARNING = " This carries a potential risk"  # followed by how to turn safe mode off
_SHAPES = re.compile(
    r"variable\.shape=(?P<expected>\(.*?\)), Received: value\.shape=(?P<stored>\(.*?\))\. "
    r"Target variable: <Variable path=(?P<name>.+?),"  # followed by the values of the variable
)


def explain_load_error(error: BaseException) -> str:
    """Return the reason, without Keras' advice on loading unsafe files anyway.

    If several layers do not fit, Keras reports the reason for one of them.
    """
    if shapes := _SHAPES.search(str(error)):
        return f"the weight {shapes['name']} has shape {shapes['stored']}, expected {shapes['expected']}"
    reason, warning, _ = first_line(error).partition(_WARNING)
    if not warning:
        example = [line for line in str(error).splitlines()[1:] if line] if reason.endswith(":") else []
        return example[0].partition(_DETAILS)[0] if example else reason
    return f"{reason.rstrip('.')}; code in a file is never run, and no other file is read: use only Keras layers."
