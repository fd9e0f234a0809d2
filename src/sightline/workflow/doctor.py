"""`doctor`: say what is wrong with the pictures of a source, and propose corrections."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sightline import files
from sightline.config import DataConfig, PictureConfig
from sightline.data import cure
from sightline.data import patch as patches
from sightline.data.audit import Audit, audit
from sightline.data.finding import Finding, listed
from sightline.data.index import Sources
from sightline.data.index import index as make_index
from sightline.errors import PictureError
from sightline.preprocess import Preprocess
from sightline.records import Index
from sightline.report import doctor as page
from sightline.report import fonts
from sightline.watch import Watcher
from sightline.workflow import choose
from sightline.workflow.check import refuse_errors

DEFAULTS, HOW = DataConfig(), PictureConfig()
SIDE = 96  # pixels of a thumbnail


@dataclass(frozen=True, slots=True)
class Checkup:
    """What the doctor found, and the files that were asked for."""

    audit: Audit
    html: str | None = None
    patch: str | None = None
    corrections: int = 0


def doctor(
    sources: Sources,
    *,
    html: Path | str | None = None,
    fix: Path | str | None = None,
    patch: Path | str | None = None,
    options: DataConfig = DEFAULTS,
    picture: PictureConfig = HOW,
    threads: int | None = None,
    watcher: Watcher | None = None,
) -> Checkup:
    """Look at every picture of `sources` once and return the findings.

    `html` names a page to write, with thumbnails; `fix` a patch file of proposed corrections, which `train --patch`
    applies; `patch` one that is applied first; `options` say how the sources are read, `picture` how each image is. The
    images themselves are never touched. Raises `DataError` for a source without any image, and `OutputError` for files
    that cannot be written.
    """
    watcher = watcher or Watcher()
    refuse_errors((), options.allow)  # a kind that there is none of
    index = make_index(sources, watcher.progress, threads, options=options, lenient=True)
    index = patches.corrected(index, None if patch is None else Path(patch))
    how, values = choose.for_a_look(picture, index, watcher.progress, threads)
    found, copies, seen = audit(index, watcher.progress, threads, values, how)
    found = replace(found, findings=(*found.findings, *_without_font(found.classes)))
    result = Checkup(found)
    if fix is not None:
        proposed = cure.propose(index, copies, seen)
        patches.write(Path(fix), proposed)
        result = replace(result, patch=str(fix), corrections=len(proposed))
    if html is not None:
        text = page.html(found, _thumbnails(index, found.findings, how))
        files.write(Path(html), text.encode(errors="backslashreplace"), "Name another file with --html.")
        result = replace(result, html=str(html))
    return result


def _without_font(classes: Iterable[str]) -> list[Finding]:
    """Return a finding on class names that figures cannot show here; none where no figures can be drawn at all."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    no_font = "characters that no installed font draws"
    return listed(
        "names-without-font", "note",
        (f"class name has {no_font}", f"class names have {no_font}"),
        f"Figures show boxes in their place; report.html uses the reader's fonts. To draw them, {fonts.HOW}.",
        fonts.undrawable(classes),
    )  # fmt: skip


def _thumbnails(index: Index, findings: Sequence[Finding], reading: Preprocess) -> dict[str, bytes]:
    """Return WebP thumbnails of the pictures that the page shows, by path; without those that cannot be decoded."""
    wanted = {path for f in findings for group in f.groups[: page.SHOWN] for path in group[: page.MEMBERS]}
    wanted |= {path for f in findings for path in f.paths[: page.SHOWN]}
    made: dict[str, bytes] = {}
    for i, picture in enumerate(index.pictures):
        if picture.path in wanted:
            scale = min(1.0, SIDE / max(picture.width, picture.height))
            height, width = (max(1, round(scale * side)) for side in (picture.height, picture.width))
            how = reading.sized(height, width)
            content = index.read(i)
            try:
                pixels = how.fit(content) if isinstance(content, np.ndarray) else how.decode(content)
            except PictureError:
                continue
            made[picture.path] = page.thumbnail(pixels)
    return made
