"""Code shared by the fuzz targets: a scratch folder, small images, and changes to JSON."""

from __future__ import annotations

import json
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sightline.preprocessing import PreprocessingSpec
from synthetic_images import encode

MAX_INPUT = 1 << 16  # bytes per input
CLASSES = ("ant", "bee", "猫")
SMALL = PreprocessingSpec(8, 8)


@cache
def scratch() -> Path:
    """Return a folder that is removed at exit."""
    folder = tempfile.TemporaryDirectory(prefix="sightline-fuzz-")
    _FOLDERS.append(folder)
    return Path(folder.name)


_FOLDERS: list[Any] = []


def encode_image(number: int = 0, kind: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20, 16, 3), np.uint8)
    return encode(Image.fromarray(pixels).convert(mode), kind, **options)


# JSON: random bytes are rarely valid

ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    0.5,
    1e300,
    1 << 63,
    "",
    "x",
    "\ud800",
    "../x",
    [],
    {},
    [[]],
    [None],
    {"x": 1},
    "9" * 400,
)


def alter_json(data: bytes, rng: random.Random) -> bytes | None:
    """Replace, remove or rename a value somewhere in JSON or JSON lines; return None for anything else."""
    start = 0 if data[:1] == b"{" else 1  # the byte that selects the file
    lines = data[start:].splitlines() if data.count(b"\n{") else [data[start:]]
    number = rng.randrange(len(lines))
    try:
        value = json.loads(lines[number])
    except (ValueError, RecursionError):
        return None
    at = value
    while isinstance(at, dict | list) and at:
        key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
        inner = at[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.4:
            how = rng.random()
            if how < 0.6:
                at[key] = rng.choice(ODD_VALUES)
            elif how < 0.8 or isinstance(at, list):
                del at[key]
            else:
                at[f"{key}s"] = at.pop(key)
            break
        at = inner
    else:
        value = rng.choice(ODD_VALUES)
    lines[number] = json.dumps(value).encode()
    return data[:start] + b"\n".join(lines)
