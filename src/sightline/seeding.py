"""Independent random streams from one seed: all random numbers derive from ``config.seed`` and a name.

A stream depends only on the seed and its name, never on global state, the order of the streams or the thread, so
adding one stream does not change another.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(seed: int, *names: str | int) -> int:
    """Return the 64-bit seed of the stream called `names` under `seed`.

    >>> derive_seed(0, "split") == derive_seed(0, "split"), derive_seed(0, "split") == derive_seed(1, "split")
    (True, False)
    """
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def make_generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return a NumPy generator (Philox, counter-based) for the stream called `names` under `seed`."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, *names)))
