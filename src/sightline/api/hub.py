"""`push` and `pull`: bundles on the Hugging Face Hub, using its own library, login and settings."""

from __future__ import annotations

import difflib
import errno
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sightline import _io, _locks, jsonio
from sightline._keras.imports import import_huggingface_hub
from sightline.api.argument_types import check_types
from sightline.api.classifier import Classifier
from sightline.api.loading import load
from sightline.callbacks import Callback
from sightline.errors import ModelError, OutputError, SightlineError, UsageError, first_line, plural, require
from sightline.inference import bundle
from sightline.inference.bundle import CARD_FILE, MANIFEST_FILE, MAX_BUNDLE_BYTES, MAX_MANIFEST_BYTES
from sightline.progress import show_progress
from sightline.report import model_card
from sightline.runs.failures import require_bundle

if TYPE_CHECKING:  # annotations only: pulling a bundle must not import training code
    from sightline.api.run import Run

PURPOSE = "The Hugging Face Hub"
MAX_STEM = 100  # characters of a folder's name in the name of its temporary folder
MAX_FILES = 200  # limit per bundle, which has at most 100 reference examples
DISK_ERRORS = {errno.ENOSPC, errno.EACCES, errno.EROFS}
_ADDRESS = re.compile(r"hf:([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]{1,200}))?", re.ASCII)
_LICENSES = (  # identifiers listed by the Hub
    "afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 "
    "bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 "
    "cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 "
    "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 "
    "cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 "
    "etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community "
    "h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 "
    "lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openmdw-1.1 openrail openrail++ osl-3.0 other "
    "pddl postgresql unknown unlicense wtfpl zlib"
)


class HubAddress(NamedTuple):
    """A model on the Hub: ``user/name``, and its branch, tag or commit, None for the newest."""

    repository: str
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """Parse ``hf:USER/NAME`` or ``hf:USER/NAME@REVISION``; raises `UsageError`."""
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise UsageError(f"{text!r} is not a model on the Hub: expected hf:USER/NAME or hf:USER/NAME@REVISION.")
        return cls(match[1], match[2])


@dataclass(frozen=True, slots=True)
class PushResult:
    """The upload, or with ``dry_run`` what would be uploaded.

    Attributes:
        repository: The model on the Hub, such as ``"user/name"``.
        url: Its address.
        files: The size of each file in bytes, by name.
        license: The license that the model card states.
        public: Whether everybody may see it; None if it was not looked up.
        commit: The hash of the new commit; None if nothing was sent.
    """

    repository: str
    url: str
    files: Mapping[str, int]
    license: str
    public: bool | None
    commit: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return jsonio.fields_to_dict(self)


@check_types
def push(
    model: Classifier | Run | str | Path,
    target: str,
    *,
    license: str | None = None,  # noqa: A002  # the name of the option
    public: bool = False,
    include_images: bool = False,
    dry_run: bool = False,
    progress: bool = True,
    callback: Callback | None = None,
) -> PushResult:
    """Upload the bundle of a model to the Hugging Face Hub, with a model card.

    A new model on the Hub is private, and the reference examples, which are images of the data set, are not uploaded,
    unless you request otherwise. The login is that of huggingface_hub: ``hf auth login``, or the variable ``HF_TOKEN``.

    Args:
        model: A run that has a bundle, a bundle, or the path of either.
        target: The model on the Hub, as ``"hf:USER/NAME"``; it is created if it does not exist.
        license: The license for the model card, such as ``"apache-2.0"`` or ``"cc-by-4.0"``; by default ``"other"``.
        public: Whether everybody may see a new model; must also be true for a model that is already public.
        include_images: Whether to upload the reference examples, which verify the bundle when it is loaded, and the
            features of validation images, with which `watch` compares others.
        dry_run: Whether to return what would be uploaded, without connecting to anything.
        progress: Whether to show progress on standard error.
        callback: Receives the progress events in place of the display.

    Returns:
        The files with their sizes, and the commit.

    Raises:
        UsageError: If the target or the license is not valid, or the target is public and `public` is false.
        ModelError: If the model has no bundle.
        OutputError: If the Hub cannot be reached, or does not accept the upload.
        MissingExtraError: If huggingface_hub is not installed.

    Example:
        ```python
        sl.push("runs/cats", "hf:me/cats", license="apache-2.0", dry_run=True).files
        ```
    """
    address = HubAddress.parse(target)
    if address.revision is not None:
        raise UsageError(f"A push goes to the main branch: give hf:{address.repository} without @{address.revision}.")
    if license is not None and license not in (identifiers := _LICENSES.split()):
        near = difflib.get_close_matches(license.lower().replace(" ", "-"), identifiers, n=1)
        hint = f". Did you mean {near[0]!r}?" if near else ", such as apache-2.0 or mit."
        raise UsageError(
            f"{license!r} is not a license identifier of the Hub{hint} For a license that it does not list, use other."
        )
    files = _prepare_files(model, address.repository, license or "other", include_images=include_images)
    sizes = {name: len(content) for name, content in files.items()}
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    planned = PushResult(address.repository, f"{endpoint}/{address.repository}", sizes, license or "other", None, None)
    if dry_run:
        return planned
    with show_progress(progress, callback) as display, _open_hub(OutputError) as hub:
        display.on_message(
            f"uploading {plural(len(sizes), 'file')}, {sum(sizes.values()) / 1e6:.1f} MB: {', '.join(sizes)}"
        )
        is_public, old_files = hub.create_if_missing(address.repository, public=public)
        commit = hub.commit(address.repository, files, old_files)
    return replace(planned, public=is_public, commit=commit)


def _prepare_files(
    model: Classifier | Run | str | Path, repository: str, license_id: str, *, include_images: bool
) -> dict[str, bytes]:
    """Return the files to upload by name.

    The card and its figures are not in the manifest: they may be edited on the Hub.
    """
    if not isinstance(model, str | Path) and not hasattr(model, "path"):
        raise UsageError(f"model must be a run, a classifier or the path of one, not {model!r}.")
    path = model if isinstance(model, str | Path) else model.path
    classifier = model if isinstance(model, Classifier) else load(path or Path())
    run, path = classifier.run, classifier.model_path
    bundle_path = path if run is None else require_bundle(run, "to upload")
    if not bundle.is_bundle(bundle_path):
        raise ModelError(f"{path} is not a bundle: give a run, or a bundle (a folder, .zip or .onnx file).")
    whole = bundle.read(bundle_path)
    figures = {name: content for name, content in whole.files.items() if name.startswith("figures/")}
    if run is not None and (confusion := run.read_figure("confusion.png")) is not None:
        figures["figures/confusion.png"] = confusion
    included = {
        name: content
        for name, content in whole.files.items()
        if name != CARD_FILE
        and name not in figures
        and (include_images or not name.startswith(("reference/", bundle.SAMPLE_FILE)))
    }
    manifest = whole.manifest if include_images else replace(whole.manifest, reference_examples=())
    uploaded = bundle.make(manifest, whole.model, included)
    card = model_card.render_card(
        uploaded.manifest, {} if run is None else run.info, tuple(figures), license_id=license_id,
        repository=f"hf:{repository}",
    )  # fmt: skip
    return {**bundle.to_files(uploaded), CARD_FILE: card.encode(), **figures}


@check_types
def pull(source: str, dest: str | Path, *, progress: bool = True, callback: Callback | None = None) -> Classifier:
    """Download a bundle from the Hugging Face Hub, and verify it before any of it is opened or put in place.

    Args:
        source: The model on the Hub, as ``"hf:USER/NAME"``, or ``"hf:USER/NAME@REVISION"`` for a branch, tag or commit.
        dest: The folder to write the bundle to, which must be empty or not exist.
        progress: Whether to show progress on standard error.
        callback: Receives the progress events in place of the display.

    Returns:
        The classifier.

    Raises:
        UsageError: If the source is not valid.
        ModelError: If there is no such model, the Hub cannot be reached, or the files are not a valid bundle.
        OutputError: If `dest` cannot be written.
        MissingExtraError: If huggingface_hub is not installed.

    Example:
        ```python
        clf = sl.pull("hf:me/cats", "cats")
        ```
    """
    address, folder = HubAddress.parse(source), _io.output_path(dest)
    _check_free(folder)
    with show_progress(progress, callback) as display, _open_hub(ModelError) as hub, _make_folder(folder) as temporary:
        commit, sizes = hub.list_files(address)
        display.on_message(f"hf:{address.repository} at commit {commit}")
        _check_size(MANIFEST_FILE, sizes, MAX_MANIFEST_BYTES)
        manifest = hub.download(address.repository, MANIFEST_FILE, commit, temporary)
        with _name_source(source, temporary):
            _, names = bundle.parse_manifest(manifest.read_bytes())
        if len(names) > MAX_FILES:
            raise ModelError(f"{source} cannot be used: its manifest lists more than {MAX_FILES} files.")
        total = sum(_check_size(name, sizes, bundle.MAX_MODEL_BYTES) for name in names)
        if total > MAX_BUNDLE_BYTES:
            raise ModelError(f"{source} cannot be used: its files have more than {MAX_BUNDLE_BYTES >> 30} GB.")
        for number, name in enumerate(names):
            display.on_progress("downloading files", number, len(names))
            hub.download(address.repository, name, commit, temporary)
        with _name_source(source, temporary):
            verified, predictor = bundle.load(temporary)
        _check_free(folder)  # again: a file put there meanwhile would be replaced
        bundle.write_folder(verified, folder)
    return Classifier(predictor, manifest=verified.manifest, path=folder)


def _check_free(folder: Path) -> None:
    """Raise `OutputError` unless a folder is empty or does not exist."""
    if folder.is_symlink() or not _io.is_free(folder):
        raise OutputError(f"{folder} exists already: choose another folder.")


@contextmanager
def _name_source(source: str, temporary: Path) -> Iterator[None]:
    """Name the model on the Hub in errors about its content, instead of the temporary folder or no name at all."""
    try:
        yield
    except ModelError as error:
        text = str(error).replace(str(temporary), source)
        raise ModelError(text if source in text else f"The model {source} cannot be used: {text}.") from error


def _check_size(name: str, sizes: Mapping[str, int | None], limit: int) -> int:
    """Return the size that the Hub states; raises `ModelError` if the file is missing or larger than `limit`."""
    size = sizes.get(name)
    if size is None:
        raise ModelError(
            f"The model has no file {name}: it was not made by `sightline push`, or is damaged. Try another revision."
        )
    if size > limit:
        raise ModelError(f"The model cannot be used: {name} has {size:,} bytes, more than {limit:,}.")
    return size


@contextmanager
def _make_folder(dest: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `dest`, and remove those of killed pulls to `dest`; raises `OutputError`."""
    prefix = f".part-{dest.name[:MAX_STEM]}-"
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        for lock in dest.parent.glob(f"{glob.escape(prefix)}*/lock"):
            if not lock.parent.is_symlink() and not _locks.is_locked(lock):  # its process was killed
                shutil.rmtree(lock.parent, ignore_errors=True)
        temporary = tempfile.TemporaryDirectory(prefix=prefix, dir=dest.parent)
    except OSError as error:
        raise OutputError(f"{dest} cannot be written: {error.strerror or error}.") from error
    with temporary as folder, _locks.hold_lock(Path(folder, "lock"), f"The folder {folder}"):
        files = Path(folder, "files")
        files.mkdir()
        yield files


class _Hub:
    """The calls of huggingface_hub that are needed here; the library finds the login by itself."""

    def __init__(self, library: Any, errors: Any, error_type: type[SightlineError]) -> None:
        self._library, self._errors, self._error_type = library, errors, error_type
        self._api = library.HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="sightline")

    @contextmanager
    def _explain_errors(self, repository: str) -> Iterator[None]:
        """Convert any error that the library raises in the block into one sentence."""
        try:
            yield
        except Exception as error:
            raise self._error_type(_explain(error, self._errors, repository)) from error

    def create_if_missing(self, repository: str, *, public: bool) -> tuple[bool, list[str]]:
        """Return whether a model is public, and its files; raises `UsageError` if it is although `public` is false."""
        with self._explain_errors(repository):
            try:
                info = self._api.model_info(repository)
            except self._errors.GatedRepoError:
                raise
            except self._errors.RepositoryNotFoundError:
                self._api.create_repo(repository, private=not public)
                return public, []
        if not info.private and not public:
            raise UsageError(f"hf:{repository} is public, so anyone could see the model: add --public to confirm.")
        return not info.private, [file.rfilename for file in info.siblings or ()]

    def commit(self, repository: str, files: Mapping[str, bytes], old_files: list[str]) -> str:
        """Upload files in one commit, remove those of an earlier bundle, and return the hash of the commit."""
        library = self._library
        operations = [library.CommitOperationAdd(name, content) for name, content in files.items()]
        stale = [name for name in old_files if bundle.is_bundle_file(name) and name not in files]
        operations += [library.CommitOperationDelete(name) for name in stale]
        with self._explain_errors(repository):
            return str(self._api.create_commit(repository, operations, commit_message="Upload a Sightline bundle").oid)

    def list_files(self, address: HubAddress) -> tuple[str, dict[str, int | None]]:
        """Return the hash of the commit, and the size of each file; the library does not validate either."""
        with self._explain_errors(address.repository):
            info = self._api.model_info(address.repository, revision=address.revision, files_metadata=True)
        sizes = {file.rfilename: file.size for file in info.siblings or ()}
        if not isinstance(info.sha, str) or not all(
            isinstance(name, str) and (size is None or (type(size) is int and size >= 0))
            for name, size in sizes.items()
        ):
            raise ModelError(f"The Hub's listing of hf:{address.repository} is damaged. Try again later.")
        return info.sha, sizes

    def download(self, repository: str, name: str, commit: str, folder: Path) -> Path:
        """Download a file below `folder`, bypassing the cache, and return its path."""
        with self._explain_errors(repository):
            return Path(self._api.hf_hub_download(repository, name, revision=commit, local_dir=folder))


@contextmanager
def _open_hub(error_type: type[SightlineError]) -> Iterator[_Hub]:
    """Yield the Hub, without its own progress bars; its errors become `error_type`, with one sentence each."""
    library = import_huggingface_hub(PURPOSE)
    errors, utils = require("huggingface_hub.errors", PURPOSE), require("huggingface_hub.utils", PURPOSE)
    shows_bars = not utils.are_progress_bars_disabled()
    if shows_bars:
        utils.disable_progress_bars()
    try:
        yield _Hub(library, errors, error_type)
    finally:
        if shows_bars:
            utils.enable_progress_bars()


def _explain(error: Exception, errors: Any, repository: str) -> str:
    """Return a sentence for an error of huggingface_hub: what happened, and what to do."""
    login = "`hf auth login`, or the variable HF_TOKEN, logs you in"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return f"hf:{repository} is gated: ask for access on its page on the Hub."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"hf:{repository} has no such revision: give a branch, a tag or a commit."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"There is no model hf:{repository} that you can access: check its name; {login}."
    if isinstance(error, errors.LocalTokenNotFoundError) or status in {401, 403}:
        return f"You are not logged in to the Hub, or your login does not permit this with hf:{repository}: {login}."
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "The Hub was not contacted, as HF_HUB_OFFLINE is set: unset it."
    fault, reason = f"The Hub cannot be reached or did not accept the request for hf:{repository}", first_line(error)
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        fault, reason = f"The files of hf:{repository} cannot be read or written on this disk", str(error.strerror)
    return f"{fault}: {reason[:200].rstrip('.')}. Try again later."
