"""Images at addresses such as ``s3://bucket/photos``, through fsspec.

Each storage client finds its own credentials as usual (environment variables, files in the home folder, the machine's
role); none are passed or stored here. Folders are listed in the order of names, one level at a time. Archives and
tables are downloaded by `staging`, labeled folders by `remote_folder`.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import IO, Any, Literal, TypeVar

from sightline.config import LimitsConfig
from sightline.data.storage import HEADER_BYTES, CheckHeader, accept_any, check_file_size, sort_names
from sightline.errors import (
    DataError,
    ImageError,
    OutputError,
    SightlineError,
    UsageError,
    check_installed,
    first_line,
    plural,
    require,
)
from sightline.escaping import hide_secrets

T = TypeVar("T")
_Entry = tuple[str, bool, Mapping[str, str]]
"""A file or folder: its path (ending in a slash for a folder), whether it is a folder, and its facts."""
_ListPage = Callable[[Any, str, str, str | None], tuple[list[str], str | None]]
PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "http": "aiohttp",
    "https": "aiohttp", "memory": "fsspec",
}  # fmt: skip
"""The supported kinds of storage, with the package that each needs. Other fsspec protocols are not supported."""
ATTEMPTS = 5
FIRST_WAIT = 0.5  # seconds before the second attempt, doubled for each further one
PATIENCE = 60.0  # seconds after which nothing is retried: some clients take a minute per attempt
_CHUNK = 1 << 20
_NO_FACTS: Mapping[str, str] = {}
_UNORDERED_BUCKET = "--x-s3"  # suffix of S3 Express One Zone buckets, which list names unordered
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_LOGGERS = ("azure", "gcsfs")  # without a handler, they write each failed attempt and its traceback to stderr
_SILENT = logging.NullHandler()
_REFUSALS = (
    "ClientAuthenticationError", "DefaultCredentialsError", "NoCredentialsError", "PartialCredentialsError",
    "RefreshError",
)  # fmt: skip
"""Names of the errors that clients raise if they find no credentials."""
_PASSWORD = re.compile(r"https?://[^/?#]*@", re.IGNORECASE)
_NOT_FETCHED = "cannot be fetched"  # start of the reason if a storage fails to return an image that may exist


def is_url(text: str) -> bool:
    """Return whether `text` is an address rather than a path.

    >>> is_url("s3://bucket/photos"), is_url("photos/cat.jpg"), is_url("C:/photos")
    (True, False, False)
    """
    return _URL.match(text) is not None


@dataclass(frozen=True, slots=True)
class RemotePath:
    """A file or a folder in a storage: the address as the user wrote it, the client, and the path for the client.

    `facts` are the metadata of a file from a listing, as text.
    """

    url: str
    client: Any
    path: str
    facts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str, purpose: Literal["Reading", "Writing"] = "Reading") -> RemotePath:
        """Parse an address; raises `UsageError` for an unknown kind, `MissingExtraError` if its package is missing.

        Writing is refused for read-only kinds.
        """
        if _PASSWORD.match(url):
            raise UsageError(
                "An address of http:// or https:// has a user or a password before @, which would show in logs and "
                "results: use an address without them, or download the file."
            )
        match = _URL.match(url)
        kind = match[1].lower() if match else ""
        if kind not in PACKAGES or "::" in url:
            raise UsageError(
                f"{hide_secrets(url)} cannot be read: addresses begin with "
                f"{', '.join(f'{name}://' for name in PACKAGES)}."
            )
        if purpose == "Writing" and PACKAGES[kind] == "aiohttp":
            raise UsageError(
                f"{hide_secrets(url)} cannot be written to: results go to a folder, or to s3://, gs:// or az://."
            )
        check_installed("fsspec", PACKAGES[kind], purpose=f"{purpose} {kind}://")
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(_SILENT)
        open_storage = require("fsspec.core", "Reading addresses").url_to_fs
        try:
            client, path = open_storage(url, use_listings_cache=False)
        except Exception as error:  # each client raises its own types
            reason = hide_secrets(first_line(error)).rstrip(".!")
            raise DataError(f"{hide_secrets(url)} cannot be opened: {reason}. Check the credentials.") from error
        return cls(url.rstrip("/"), client, path)

    @property
    def name(self) -> str:
        """The last part of the path; over HTTP, without a query such as a signature."""
        path = self.path.partition("?")[0] if self.url.lower().startswith("http") else self.path
        return path.rstrip("/").rpartition("/")[2]

    def describe(self) -> dict[str, Any]:
        """Return the metadata in the storage; raises `DataError` if the path does not exist or cannot be reached."""
        info: dict[str, Any] = retry(self.url, lambda: self.client.info(self.path))
        return info

    def is_folder(self) -> bool:
        """Return whether the path is a folder; raises as `describe` does."""
        return bool(self.describe()["type"] == "directory")

    def walk(self, *, with_facts: bool = False) -> Iterator[RemotePath]:
        """Yield the files below a folder in the order of their paths; `with_facts` takes several times the memory."""
        levels = [self._iterate(with_facts=with_facts)]
        while levels:
            if (entry := next(levels[-1], None)) is None:
                levels.pop()
                continue
            path, is_folder, facts = entry
            below = RemotePath(
                self.url + path.rstrip("/").removeprefix(self.path.rstrip("/")), self.client, path.rstrip("/"), facts
            )
            if is_folder:
                levels.append(below._iterate(with_facts=with_facts))
            else:
                yield below

    def _iterate(self, *, with_facts: bool) -> Iterator[_Entry]:
        """Yield the files and folders in a folder in the order of their paths, with facts if requested."""
        list_page = _LIST_PAGE.get(PACKAGES[self.url.partition("://")[0].lower()])
        bucket, _, key = self.path.strip("/").partition("/")
        if list_page is None or not bucket or with_facts:
            return iter(self._list(with_facts=with_facts))
        prefix = key and f"{key}/"
        pages = self._list_pages(list_page, bucket, prefix)
        is_ordered = list_page is not _list_azure and not bucket.endswith(_UNORDERED_BUCKET)
        names = chain.from_iterable(map(sorted, pages)) if is_ordered else sort_names(chain.from_iterable(pages))
        own = self.path.rstrip("/")
        return ((f"{own}/{name.removeprefix(prefix)}", name.endswith("/"), _NO_FACTS) for name in names)

    def _list_pages(self, list_page: _ListPage, bucket: str, prefix: str) -> Iterator[list[str]]:
        """Yield the names below a prefix, some thousands at a time; names of folders end in ``/``."""
        token = None
        while True:
            names, token = retry(self.url, partial(list_page, self.client, bucket, prefix, token))
            yield [name for name in names if name.rstrip("/") != prefix.rstrip("/")]  # a key may end in slashes
            if not token:
                return

    def _list(self, *, with_facts: bool = False) -> list[_Entry]:
        """Return the files and folders in a folder in the order of their paths, with facts if requested."""
        own = self.path.rstrip("/")
        entries = retry(self.url, lambda: self.client.ls(self.path, detail=True))
        below = {}  # by name: Azure lists some folders twice
        for entry in entries:
            name, is_folder = str(entry["name"]).rstrip("/"), entry["type"] == "directory"
            if name.startswith(own + "/"):
                facts = describe_file(entry) if with_facts else _NO_FACTS
                below[name, is_folder] = (name + "/" * is_folder, is_folder, facts)
        return sorted(below.values(), key=itemgetter(0))

    def read(self, limits: LimitsConfig, check: CheckHeader = accept_any) -> bytes:
        """Return the content of an image to predict; raises `ImageError` if it cannot be read.

        This includes failures of the storage, which `is_not_fetched` distinguishes from other reasons.
        """
        try:
            return self.download(limits, check)
        except _FetchError as error:
            raise ImageError(f"{_NOT_FETCHED}: {error.reason}") from error

    def download(self, limits: LimitsConfig, check: CheckHeader = accept_any) -> bytes:
        """Return the content of a file; raises `ImageError` if it does not exist or exceeds the limit.

        Raises `DataError` if access is denied, or if the storage cannot be reached after several attempts.
        """
        limit = int(limits.file_mb * 2**20)

        def read() -> bytes:
            with self.open_stream() as file:
                return _read_up_to(file, limit + 1)

        try:
            content = retry(self.url, read)
        except _MissingError as error:
            raise ImageError("cannot be opened: No such file") from error
        check(content[:HEADER_BYTES])
        check_file_size(len(content), limits)
        return content

    def join(self, name: str) -> RemotePath:
        """Return a file in a folder."""
        return RemotePath(f"{self.url}/{name}", self.client, f"{self.path.rstrip('/')}/{name}")

    def is_file(self) -> bool:
        """Return whether there is a file with exactly this path."""
        return bool(retry(self.url, lambda: self.client.isfile(self.path)))

    def list_names(self) -> list[str]:
        """Return the names of the files and folders in a folder; none if it does not exist."""
        try:
            return [path.rstrip("/").rpartition("/")[2] for path, _, _ in self._list()]
        except _MissingError:
            return []

    def open(self) -> Any:
        """Open a file for reading at any position; raises FileNotFoundError, or `DataError` if it cannot be read."""
        try:
            return retry(self.url, lambda: self.client.open(self.path, "rb"))
        except _MissingError as error:
            raise FileNotFoundError(str(error)) from error

    def write(self, content: bytes) -> None:
        """Write a file, replacing any existing one; raises `OutputError`."""
        try:
            retry(self.url, lambda: self.client.pipe_file(self.path, content), "written")
        except DataError as error:
            raise OutputError(str(error)) from error

    def open_stream(self) -> Any:
        """Open a file for reading from its start; raises as the client does."""
        options = {"block_size": 0} if self.url.lower().startswith("http") else {"cache_type": "none"}
        return self.client.open(self.path, "rb", **options)  # one stream, regardless of the size that the server states


def _list_s3(client: Any, bucket: str, prefix: str, token: str | None) -> tuple[list[str], str | None]:
    """Return a page of the names below a prefix (folders end in ``/``), and the token of the next page."""
    options = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/", **client.req_kw}
    page = client.call_s3("list_objects_v2", **options, **({"ContinuationToken": token} if token else {}))
    names = [entry["Key"] for entry in page.get("Contents", [])]
    return [*names, *(entry["Prefix"] for entry in page.get("CommonPrefixes", []))], page.get("NextContinuationToken")


def _list_gcs(client: Any, bucket: str, prefix: str, token: str | None) -> tuple[list[str], str | None]:
    """Return the same as `_list_s3` for Google Cloud Storage."""
    options = {"prefix": prefix, "delimiter": "/", **({"pageToken": token} if token else {})}
    page = client.call("GET", "b/{}/o", bucket, json_out=True, **options)
    return [*(item["name"] for item in page.get("items", [])), *page.get("prefixes", [])], page.get("nextPageToken")


def _list_azure(client: Any, bucket: str, prefix: str, token: str | None) -> tuple[list[str], str | None]:
    """Return the same as `_list_s3` for Azure, where an empty object without a ``/`` may represent a folder."""

    async def list_page() -> tuple[list[str], str | None]:
        async with client.service_client.get_container_client(container=bucket) as container:
            pages = container.walk_blobs(name_starts_with=prefix, include=["metadata"], delimiter="/").by_page(token)
            names = [blob.name async for blob in await anext(pages) if not _is_azure_folder(blob)]
            return names, pages.continuation_token

    page: tuple[list[str], str | None] = require("fsspec.asyn", "Reading addresses").sync(client.loop, list_page)
    return page


def _is_azure_folder(blob: Any) -> bool:
    metadata = {name.lower(): value for name, value in (getattr(blob, "metadata", None) or {}).items()}
    return "true" in {metadata.get("hdi_isfolder"), metadata.get("is_directory")}


_LIST_PAGE: Mapping[str, _ListPage] = {"s3fs": _list_s3, "gcsfs": _list_gcs, "adlfs": _list_azure}


def describe_file(info: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata that identify the content of a file in a storage.

    Addresses, which may be signed anew, and Azure's time of last access are left out.
    """
    return {str(name): str(value) for name, value in info.items() if name not in {"url", "last_accessed_on"}}


class _MissingError(DataError):
    """The file does not exist."""


class _FetchError(DataError):
    """A storage refuses a request or does not respond; `reason` says why, without the address."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def is_not_fetched(reason: str | None) -> bool:
    """Return whether an image could not be fetched from the storage, as opposed to having invalid content."""
    return reason is not None and reason.startswith(_NOT_FETCHED)


def retry(url: str, call: Callable[[], T], action: Literal["read", "written"] = "read") -> T:
    """Return the result of `call`, retrying after network failures.

    Raises `DataError` after `ATTEMPTS` attempts, and at once if the file does not exist or access is denied.
    """
    address, start = hide_secrets(url), time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except SightlineError:
            raise
        except Exception as raised:  # noqa: BLE001  # each client raises its own types
            error = _find_failure(url, raised)
            if isinstance(error, FileNotFoundError):
                raise _MissingError(f"There is nothing at {address}. Check the address.") from error
            reason = hide_secrets(first_line(error)).rstrip(".")
            if _is_refusal(error):
                message = f"{address} may not be {action}: {reason}. Check the credentials."
                raise _FetchError(message, reason) from error
            if attempt == ATTEMPTS or time.monotonic() - start > PATIENCE:
                attempts = plural(attempt, "attempt")
                raise _FetchError(
                    f"{address} cannot be {action} after {attempts}: {reason}. Check the connection, then run the same "
                    "command again.",
                    f"{reason} ({attempts})",
                ) from error
            time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
    raise AssertionError


def _find_status(error: BaseException) -> int | None:
    """Return the HTTP status of a failed request; each client has its own name for it."""
    values = (getattr(error, name, None) for name in ("status", "status_code", "code"))
    return next((value for value in values if isinstance(value, int)), None)


def _is_refusal(error: BaseException) -> bool:
    """Return whether credentials are missing or insufficient. Google's client reports this only in the message."""
    if isinstance(error, PermissionError) or type(error).__name__ in _REFUSALS or _find_status(error) in {401, 403}:
        return True
    return isinstance(error, OSError) and str(error).startswith("Forbidden: ")


def _find_failure(url: str, error: Exception) -> BaseException:
    """Return the cause of a failed request: the HTTP client reports any failure as a missing file, Azure's never."""
    if type(error).__name__ == "ResourceNotFoundError":
        return FileNotFoundError(first_line(error))
    cause = error.__cause__
    if cause is None or not url.lower().startswith("http") or not isinstance(error, FileNotFoundError):
        return error
    return error if getattr(cause, "status", None) in {404, 410} else cause


def _read_up_to(file: IO[bytes], count: int) -> bytes:
    """Return at most `count` bytes; a stream may return fewer at a time."""
    content = bytearray()
    while len(content) < count and (chunk := file.read(min(_CHUNK, count - len(content)))):
        content += chunk
    return bytes(content)
