"""One seed, many independent streams: everything random derives from ``config.seed`` and a name.

A stream depends on its name alone, never on global state, on the order in which streams are drawn or on which
thread draws them, so that adding one source of chance does not move another.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *names: str | int) -> int:
    """Return the 64-bit seed of the stream called `names` under `seed`.

    >>> derive(0, "split") == derive(0, "split"), derive(0, "split") == derive(1, "split")
    (True, False)
    """
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return a NumPy generator (Philox, counter-based) for the stream called `names` under `seed`."""
    return np.random.Generator(np.random.Philox(derive(seed, *names)))
