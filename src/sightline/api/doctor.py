"""`doctor`: find problems in a labeled set of images, and propose corrections."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sightline import _io
from sightline.api.record_list import RecordList, format_html_table
from sightline.callbacks import Callback
from sightline.config import RunConfig
from sightline.data import label_patch as patches
from sightline.data.checks import fixes
from sightline.data.checks.audit import Audit, audit_images
from sightline.data.checks.finding import Finding, image_finding
from sightline.data.class_folders import ClassFolders, write_class_folders
from sightline.data.indexing import Sources, build_index, list_of_sources
from sightline.data.sources.listing import SourceListing
from sightline.data.types import Index
from sightline.errors import ImageError, OutputError, UsageError, name_arguments, plural
from sightline.preprocessing import PreprocessingSpec, fit_size
from sightline.report import doctor_page as page
from sightline.report import fonts
from sightline.runs.preflight import raise_for_errors, select_applicable
from sightline.runs.resolve import inspection_preprocess
from sightline.tasks.protocol import find_task

THUMBNAIL_SIDE = 96  # pixels of a thumbnail's longer side
FINDING_COLUMNS = ("severity", "kind", "count", "description", "examples", "advice")


@dataclass(frozen=True, slots=True, repr=False)
class DoctorReport:
    """The findings of `doctor`, and the files that it wrote."""

    audit: Audit
    html: str | None = None
    patch: str | None = None
    corrections: int = 0
    folders: ClassFolders | None = None

    @property
    def findings(self) -> RecordList[Finding]:
        """The findings, errors first; their advice names arguments, not options of the command line."""
        findings = [replace(finding, advice=name_arguments(finding.advice)) for finding in self.audit.findings]
        return RecordList(findings, _finding_row, FINDING_COLUMNS)

    @property
    def errors(self) -> int:
        """The number of findings that are errors."""
        return self.audit.errors

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with a row per finding; raises `MissingExtraError` without pandas."""
        return self.findings.to_frame()

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``doctor --format json``."""
        folders = None if self.folders is None else self.folders.to_dict()
        files = {"html": self.html, "patch": self.patch, "corrections": self.corrections, "folders": folders}
        return self.audit.to_dict() | files

    def __repr__(self) -> str:
        return f"{self._describe()}\n{self.findings!r}" if self.audit.findings else self._describe()

    def _describe(self) -> str:
        count = len(self.audit.findings)
        images, classes = plural(self.audit.count, "image"), plural(len(self.audit.classes), "class", "classes")
        return f"{self.audit.name}: {images} in {classes}, {plural(count, 'finding') if count else 'no findings'}"

    def _repr_html_(self) -> str:
        return format_html_table([_finding_row(f) for f in self.findings], title=self._describe())


def _finding_row(finding: Finding) -> dict[str, Any]:
    examples = [", ".join(group) for group in finding.groups[:2]] or list(finding.paths[:2])
    cells = (
        finding.severity, finding.kind, finding.count, finding.description, "; ".join(examples), finding.advice,
    )  # fmt: skip
    return dict(zip(FINDING_COLUMNS, cells, strict=True))


def doctor(
    sources: Sources,
    *,
    html: Path | str | None,
    fix: Path | str | None,
    patch: Path | str | None,
    folders: Path | str | None,
    config: RunConfig,
    callback: Callback,
) -> DoctorReport:
    """Check every image of `sources` and return the findings.

    `html` is a report to write, with thumbnails. `fix` is a patch file of proposed corrections to write, which
    `train --patch` applies. `patch` is applied first; if `fix` is the same file, its lines are kept. `folders` is a
    folder to write, with a link to each image in one folder per class and split, see `write_class_folders`. `config`
    says how sources are read and decoded, and which findings apply: with several labels per image, a row without a
    label is an image of none of the classes. The images themselves are never modified. Raises `DataError` for a source
    without images, `OutputError` if a file cannot be written, `UsageError` if `fix` has lines and is not `patch`.
    """
    raise_for_errors((), config.data.allow_findings)  # rejects unknown kinds
    html, fix, folders = (None if path is None else _io.output_path(path) for path in (html, fix, folders))
    patch = None if patch is None else _io.expand_home(patch)
    if html is not None:
        _check_page(html)
    with nullcontext() if fix is None else patches.hold_patch(fix) as file:
        if fix is not None:
            _check_no_lines_lost(fix, patch)
        index = build_index(
            sources, callback.on_progress, options=config.data, lenient=True, unlabeled=patch is not None,
            targets=find_task(config.model.task).targets,
        )  # fmt: skip
        index = patches.load_and_apply_patch(index, patch)
        preprocess, sample_range = inspection_preprocess(config.input, index, callback.on_progress)
        result_audit, duplicates, image_stats = audit_images(index, callback.on_progress, sample_range, preprocess)
        findings = select_applicable(result_audit.findings, index, config)
        result_audit = replace(result_audit, findings=(*findings, *_missing_font_findings(result_audit.classes)))
        result = DoctorReport(result_audit)
        if file is not None:
            proposed = fixes.propose_fixes(index, duplicates, image_stats)
            entries = patches.add_entries(patches.read_entries(file), proposed)
            patches.write_patch(file, entries)
            count = sum(entry.action != "keep" for entry in entries)
            result = replace(result, patch=str(fix), corrections=count)
    if html is not None:
        text = page.render_html(result_audit, _thumbnails(index, result_audit.findings, preprocess))
        _io.write_atomic(html, text.encode(errors="backslashreplace"), "Choose another file with --html.")
        result = replace(result, html=str(html))
    if folders is not None:
        paths = [source for source in list_of_sources(sources) if not isinstance(source, SourceListing)]
        readable = [i for i, image in enumerate(index.images) if not image_stats.images[image.sha256].error]
        written = write_class_folders(index.select(readable), folders, paths, callback.on_progress)
        result = replace(result, folders=written)
    return result


def _check_page(path: Path) -> None:
    """Raise `OutputError` if the path is a folder, or a file that is not one of these pages."""
    try:
        with _io.open_regular(path) as file:
            is_page = b'<meta name="generator" content="Sightline">' in file.read(1000)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError:
        is_page = False
    if not is_page:
        raise OutputError(f"{path} exists and is not a page of Sightline: choose another file with --html.")


def _check_no_lines_lost(fix: Path, patch: Path | None) -> None:
    """Raise `UsageError` if a file of proposed corrections has lines that were not applied first."""
    if patches.read_entries(fix) and (patch is None or patch.resolve() != fix.resolve()):
        raise UsageError(
            f"{fix} has corrections already: to keep them and add new ones, add --patch {fix}, or choose another file "
            "with --write-fixes."
        )


def _missing_font_findings(classes: Iterable[str]) -> list[Finding]:
    """Return a finding on class names that figures cannot render; none if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    no_font = "characters missing from all installed fonts"
    return image_finding(
        "names-without-font", "note",
        (f"class name has {no_font}", f"class names have {no_font}"),
        f"Figures show boxes instead; report.html uses the browser's fonts. To render them, {fonts.INSTALL_HINT}.",
        fonts.undrawable_texts(classes),
    )  # fmt: skip


def _thumbnails(index: Index, findings: Sequence[Finding], preprocess: PreprocessingSpec) -> dict[str, bytes]:
    """Return WebP thumbnails of the images that the page shows, by path; undecodable ones are omitted."""
    shown_paths = {path for f in findings for group in f.groups[: page.MAX_ITEMS] for path in group[: page.MAX_MEMBERS]}
    shown_paths |= {path for f in findings for path in f.paths[: page.MAX_ITEMS]}
    thumbnails: dict[str, bytes] = {}
    for i, image in enumerate(index.images):
        if image.path in shown_paths:
            width, height = fit_size(image.width, image.height, THUMBNAIL_SIDE)
            sized = preprocess.with_size(height, width)
            content = index.read(i)
            try:
                pixels = sized.convert(content)
            except ImageError:
                continue
            thumbnails[image.path] = page.encode_thumbnail(pixels)
    return thumbnails
