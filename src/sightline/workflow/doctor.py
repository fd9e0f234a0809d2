"""`doctor`: find problems in a labeled set of images, and propose corrections."""

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
SIDE = 96  # pixels of a thumbnail's longer side


@dataclass(frozen=True, slots=True)
class Checkup:
    """The findings of `doctor`, and the files that it wrote."""

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
    """Check every image of `sources` and return the findings.

    `html` is the path of a report to write, with thumbnails; `fix` that of a patch file of proposed corrections, which
    `train --patch` applies; `patch` is applied first. `options` control how sources are read, `picture` how images are
    decoded. The images themselves are never modified. Raises `DataError` for a source without images, `OutputError`
    if a file cannot be written.
    """
    watcher = watcher or Watcher()
    refuse_errors((), options.allow)  # rejects unknown kinds
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
        files.write(Path(html), text.encode(errors="backslashreplace"), "Choose another file with --html.")
        result = replace(result, html=str(html))
    return result


def _without_font(classes: Iterable[str]) -> list[Finding]:
    """Return a finding on class names that figures cannot render; none if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    no_font = "characters missing from all installed fonts"
    return listed(
        "names-without-font", "note",
        (f"class name has {no_font}", f"class names have {no_font}"),
        f"Figures show boxes instead; report.html uses the browser's fonts. To render them, {fonts.HOW}.",
        fonts.undrawable(classes),
    )  # fmt: skip


def _thumbnails(index: Index, findings: Sequence[Finding], reading: Preprocess) -> dict[str, bytes]:
    """Return WebP thumbnails of the images that the page shows, by path; undecodable ones are omitted."""
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
