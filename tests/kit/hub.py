"""A stand-in on this machine for the server of the Hugging Face Hub.

It answers what `huggingface_hub` asks to look for, fetch, make and update models; `fetched` says
which files were. Large files are uploaded as small ones are, within the commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from huggingface_hub import constants

Files = dict[str, bytes]
VALIDATION = "/api/validate-yaml"
# Some of those that the hub knows.
LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "openrail", "other", "unknown")


@dataclass
class Repository:
    """Files by commit, and commits by branch or tag; `gated`: to be read after a login."""

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    snapshots: dict[str, Files] = field(default_factory=dict)

    def commit(self, files: Files, branch: str = "main") -> str:
        """Add files to a branch; returns the commit's hash."""
        before = self.snapshots.get(self.branches.get(branch, ""), {})
        number = f"{branch} {len(self.snapshots)}"
        commit = hashlib.sha1(number.encode()).hexdigest()
        self.snapshots[commit] = {**before, **files}
        self.branches[branch] = commit
        return commit

    def at(self, revision: str) -> str | None:
        """The commit that a revision names."""
        found = self.branches.get(revision, revision)
        return found if found in self.snapshots else None


@dataclass
class Hub:
    """The repositories of a server; it asks for `token` to change them, if it is set."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    token: str | None = None
    refusal: tuple[int, str] | None = None  # the status and reason of all changes
    fetched: list[str] = field(default_factory=list)

    def add(self, name: str, folder: Path, **options: bool) -> Repository:
        """A repository with the files of a folder."""
        repository = self.repositories[name] = Repository(**options)
        files = [path for path in folder.rglob("*") if path.is_file()]
        repository.commit({p.relative_to(folder).as_posix(): p.read_bytes() for p in files})
        return repository


class _Refused(Exception):
    """`code` is for programs, `reasons` are for people."""

    def __init__(self, status: int, code: str = "", reasons: Sequence[str] = ()) -> None:
        super().__init__(status, code)
        self.status, self.code = status, code
        self.body = {"errors": [{"message": reason} for reason in reasons]} if reasons else {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer({})

    def do_GET(self) -> None:
        self._answer(
            {
                r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?": self._info,
                r"/api/models/([^/]+/[^/]+)/tree/([^/]+)": self._tree,
            }
        )

    def do_POST(self) -> None:
        self._answer(
            {
                r"/api/repos/create": self._create,
                VALIDATION: self._validate,
                r"/api/models/([^/]+/[^/]+)/branch/(.+)": self._branch,
                r"/api/models/([^/]+/[^/]+)/preupload/(.+)": self._preupload,
                r"/api/models/([^/]+/[^/]+)/commit/(.+)": self._commit,
            }
        )

    def _answer(self, routes: dict[str, Any]) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        path = unquote(self.path.partition("?")[0])
        try:
            if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                return self._file(*match.groups())
            for pattern, route in reversed(routes.items()):
                if match := re.fullmatch(pattern, path):
                    if self.command != "GET" and not self._may_change and path != VALIDATION:
                        raise _Refused(401)
                    if self.hub.refusal is not None and path != VALIDATION and self.body:
                        status, reason = self.hub.refusal
                        raise _Refused(status, reasons=[reason] if reason else [])
                    return self._send(json.dumps(route(*match.groups())).encode())
            raise _Refused(404)
        except _Refused as refusal:
            body = json.dumps(refusal.body).encode()
            self._send(body, refusal.status, {"X-Error-Code": refusal.code})

    def _send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def _may_change(self) -> bool:
        return self.hub.token is None or self._logged_in

    @property
    def _logged_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _found(self, name: str, revision: str | None) -> tuple[Repository, str]:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._logged_in):
            raise _Refused(401, "RepoNotFound")
        commit = repository.at(revision or "main")
        if commit is None:
            raise _Refused(404, "RevisionNotFound")
        return repository, commit

    def _info(self, name: str, revision: str | None) -> dict[str, Any]:
        repository, commit = self._found(name, revision)
        files = [{"rfilename": path} for path in repository.snapshots[commit]]
        return {"id": name, "sha": commit, "siblings": files, "private": repository.private}

    def _tree(self, name: str, revision: str) -> list[dict[str, Any]]:
        repository, commit = self._found(name, revision)
        return [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in repository.snapshots[commit].items()
        ]

    def _file(self, name: str, revision: str, path: str) -> None:
        repository, commit = self._found(name, revision)
        if repository.gated and not self._logged_in:
            raise _Refused(401, "GatedRepo")
        data = repository.snapshots[commit].get(path)
        if data is None:
            raise _Refused(404, "EntryNotFound")
        if self.command == "GET":
            self.hub.fetched.append(path)
        etag = hashlib.sha1(data).hexdigest()
        self._send(data, headers={"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def _create(self) -> dict[str, Any]:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private=bool(private))
        self.hub.repositories[name].commit({})
        return {"url": f"{self.hub.url}/{name}", "id": name}

    def _validate(self) -> dict[str, Any]:
        """What the hub says of a card's metadata: here, of its license and tags alone."""
        content: str = json.loads(self.body)["content"]
        metadata = yaml.safe_load(content.split("---")[1]) if content.startswith("---") else {}
        reasons = []
        if metadata.get("license", "mit") not in LICENSES:
            reasons.append(f'"license" must be one of [{", ".join(LICENSES)}]')
        if not all(isinstance(tag, str) for tag in metadata.get("tags", ())):
            reasons.append('"tags" must be an array of strings')
        if reasons:
            raise _Refused(400, reasons=reasons)
        return {"errors": [], "warnings": []}

    def _branch(self, name: str, branch: str) -> dict[str, Any]:
        repository, commit = self._found(name, None)
        if branch in repository.branches:
            raise _Refused(409)
        repository.branches[branch] = commit
        return {}

    def _preupload(self, name: str, revision: str) -> dict[str, Any]:
        self._found(name, revision)
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        mode = {"uploadMode": "regular", "shouldIgnore": False}  # within the commit
        return {"files": [{"path": path, **mode} for path in paths]}

    def _commit(self, name: str, revision: str) -> dict[str, Any]:
        repository, _ = self._found(name, revision)
        files: Files = {}
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
        commit = repository.commit(files, revision)
        return {"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit}


@contextmanager
def serve_hub(cache: Path) -> Iterator[Hub]:
    """Run a stand-in server, which `huggingface_hub` uses meanwhile, with an empty cache."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True  # kept connections end with the process
    server.block_on_close = False
    hub.url = f"http://127.0.0.1:{server.server_port}"
    options = {"poll_interval": 0.01}
    thread = threading.Thread(target=server.serve_forever, kwargs=options, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        # What these are made of is read when the library is imported.
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
        patch.delenv("HF_TOKEN", raising=False)
        patch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        try:
            yield hub
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
