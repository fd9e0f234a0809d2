"""A Hugging Face Hub on this machine: the part of its HTTP API that huggingface_hub uses to push and pull a model."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "notARealToken0123456789"
Files = dict[str, bytes]


@dataclass
class Repository:
    """A model on the server: its files after each commit, by commit hash."""

    private: bool
    commits: dict[str, Files] = field(default_factory=dict)

    @property
    def files(self) -> Files:
        """The files of the newest commit."""
        return next(reversed(self.commits.values()), {})

    def add(self, files: Files) -> str:
        """Add a commit with these files, and return its hash."""
        commit = hashlib.sha1(repr((len(self.commits), sorted(files))).encode(), usedforsecurity=False).hexdigest()
        self.commits[commit] = files
        return commit

    def find(self, revision: str) -> str | None:
        """Return the hash of a revision: ``main`` or a commit."""
        return next(reversed(self.commits), "0" * 40) if revision == "main" else revision * (revision in self.commits)


@dataclass
class Hub:
    """The state of the server. Files of at least `lfs_bytes` bytes are handled as large files."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: Files = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    lfs_bytes: int = 1000
    stated_sizes: dict[str, int] = field(default_factory=dict)
    """False sizes to state, as a dishonest server does."""
    listing: bytes | None = None
    """The listing to send for a model, whatever its files are."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        match path.strip("/").split("/"):
            case ["api", "repos", "create"]:
                self._create(json.loads(body))
            case ["api", "validate-yaml"]:
                self._send({"errors": [], "warnings": []})
            case ["lfs", oid]:
                self.hub.objects[oid] = body
                self._send({})
            case ["verify"]:
                self._send({})
            case ["api", "models", user, name, *rest]:
                self._model(f"{user}/{name}", rest, body)
            case [user, name, "info", "lfs", "objects", "batch"]:
                self._batch(f"{user}/{name.removesuffix('.git')}", json.loads(body))
            case [user, name, "resolve", revision, *parts]:
                self._file(f"{user}/{name}", revision, "/".join(parts))
            case _:
                self._refuse(404, "EntryNotFound")

    @property
    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _find(self, name: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        return None if repository is None or (repository.private and not self._is_known) else repository

    def _create(self, values: dict[str, Any]) -> None:
        if not self._is_known:
            self._refuse(401, "")
            return
        name = f"{values['organization']}/{values['name']}"
        self.hub.repositories[name] = Repository(values.get("visibility") == "private" or values.get("private") is True)
        self._send({"url": f"{self.hub.url}/{name}", "name": name})

    def _model(self, name: str, rest: list[str], body: bytes) -> None:
        repository = self._find(name)
        if repository is None:
            self._refuse(404 if self._is_known else 401, "RepoNotFound")
        elif rest in ([], ["revision", *rest[1:]]):
            self._info(name, repository, "/".join(rest[1:]) or "main")
        elif not self._is_known:
            self._refuse(403, "")
        elif rest[0] == "preupload":
            files = json.loads(body)["files"]
            mode = {True: "lfs", False: "regular"}
            answers = [{"path": f["path"], "uploadMode": mode[f["size"] >= self.hub.lfs_bytes]} for f in files]
            self._send({"files": [answer | {"shouldIgnore": False, "oid": None} for answer in answers]})
        else:
            self._commit(name, repository, [json.loads(line) for line in body.splitlines()])

    def _info(self, name: str, repository: Repository, revision: str) -> None:
        commit = repository.find(revision)
        if self.hub.listing is not None:
            self._write(200, self.hub.listing, {"Content-Type": "application/json"})
            return
        if not commit:
            self._refuse(404, "RevisionNotFound")
            return
        files = repository.commits.get(commit, {})
        sizes = {file: len(content) for file, content in files.items()} | self.hub.stated_sizes
        siblings = [{"rfilename": file, "size": size} for file, size in sizes.items()]
        self._send({"id": name, "sha": commit, "private": repository.private, "siblings": siblings})

    def _batch(self, name: str, values: dict[str, Any]) -> None:
        assert name in self.hub.repositories
        objects = [
            {
                "oid": item["oid"],
                "size": item["size"],
                "actions": {
                    "upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"},
                    "verify": {"href": f"{self.hub.url}/verify"},
                },
            }
            for item in values["objects"]
        ]
        self._send({"transfer": "basic", "objects": objects}, "application/vnd.git-lfs+json")

    def _commit(self, name: str, repository: Repository, operations: list[dict[str, Any]]) -> None:
        files = dict(repository.files)
        for operation in operations:
            value = operation["value"]
            match operation["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        commit = repository.add(files)
        self._send({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{name}/commit/{commit}"})

    def _file(self, name: str, revision: str, path: str) -> None:
        repository = self._find(name)
        if repository is None:
            self._refuse(401, "RepoNotFound")
            return
        commit = repository.find(revision)
        content = repository.commits.get(commit or "", {}).get(path)
        if not commit or content is None:
            self._refuse(404, "EntryNotFound")
            return
        etag = hashlib.sha256(content).hexdigest()
        self._write(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "none"})

    def _send(self, value: Any, kind: str = "application/json") -> None:
        self._write(200, json.dumps(value).encode(), {"Content-Type": kind})

    def _refuse(self, status: int, code: str) -> None:
        self._write(status, b"{}", {"X-Error-Code": code} if code else {})

    def _write(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def run_hub() -> Iterator[Hub]:
    """Yield the state of a server on a free port of this machine."""
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub})) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
