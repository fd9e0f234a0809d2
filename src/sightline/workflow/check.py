"""The brief check at the start of `train`: what the index and the decoded pixels tell without further work."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from sightline import process
from sightline.config import RunConfig
from sightline.data import patch
from sightline.data.audit import brief
from sightline.data.dataset import Dataset
from sightline.data.survey import by_name, fingerprints, tiny
from sightline.records import Index
from sightline.watch import Watcher

LINES = 5  # of findings; the rest is counted
MOST = 20_000  # pictures among which near duplicates are looked for here: a few seconds


def before(index: Index, config: RunConfig, watcher: Watcher) -> Index:
    """Return `index` as corrected by ``data.patch``, and say what is wrong with it, in a few lines."""
    if config.data.patch:
        path = Path(config.data.patch)
        corrections = patch.read(path)
        index = patch.apply(index, corrections, f"The patch {path}")
        watcher.say(f"{path}: {len(corrections)} corrections applied; to take one back, delete its line")
    settled = set() if config.split.group == "none" else {"group-candidates"}
    found = [f for f in brief(index).findings if f.severity != "note" and f.kind not in settled]
    for finding in found[:LINES]:
        watcher.say(f"{finding.severity}: {finding.kind}: {finding.count} {finding.what}")
    if found:
        more = f"{len(found) - LINES} more findings; " if len(found) > LINES else ""
        watcher.say(f"{more}`sightline doctor` names them all and says what to do")
    return index


def near(data: Dataset, config: RunConfig) -> Iterator[str]:
    """Yield a line if near duplicates lie on two sides of the split; found by the decoded pixels, so only roughly."""
    rows = np.unique(data.rows)
    if config.split.group != "none" or len(rows) > MOST or len(rows) == 0:
        return
    with ThreadPoolExecutor(config.device.threads or process.cores()) as pool:
        small = np.stack(list(pool.map(lambda row: tiny(_image(data, int(row))), rows)))
    telling = np.ptp(small.reshape(len(small), -1), axis=1) > 0
    if not telling.any():
        return
    prints, thumbs = fingerprints(small[telling])
    names = [str(row) for row in rows[telling]]
    group = by_name(names, prints, thumbs)
    sides: dict[str, set[tuple[str, str]]] = {}
    for row, part in zip(data.rows.tolist(), data.parts, strict=True):
        name = str(row)
        sides.setdefault(group.get(name, name), set()).add((name, part))
    across = sum(len({name for name, _ in side}) > 1 and len({part for _, part in side}) > 1 for side in sides.values())
    if across:
        yield (
            f"{across} groups of near duplicates lie on two sides of the split: --set split.group=near keeps each on "
            "one side where the source states no parts"
        )


def _image(data: Dataset, row: int) -> Image.Image:
    pixels = np.asarray(data.pixels[row])
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
