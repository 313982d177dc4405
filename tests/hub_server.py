"""A small Hub on this machine: the part of its protocol that pushing and pulling models uses.

`with serve() as hub:` gives `hub.url` for HF_ENDPOINT and `hub.repositories` to look into;
`hub.paths` and `hub.faults` (address prefix -> status) let a test watch and disturb it;
`hub.people` (token -> name) are those that it knows, and `hub.roles` what a token may do.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

OWNER, TOKEN = "alice", "hf_local_test_token"
Files = dict[str, bytes]


@dataclass
class Repository:
    """One repository; each commit is (id, message, all files)."""

    private: bool = False
    commits: list[tuple[str, str, Files]] = field(default_factory=list)
    branches: dict[str, list[tuple[str, str, Files]]] = field(default_factory=dict)

    @property
    def files(self) -> Files:
        return self.commits[-1][2] if self.commits else {}

    def of(self, revision: str) -> list[tuple[str, str, Files]]:
        return self.branches.get(revision, self.commits)

    def commit(self, message: str, files: Files, revision: str = "main") -> str:
        commits = self.of(revision)
        sha = hashlib.sha1(repr((len(commits), message, files)).encode()).hexdigest()
        commits.append((sha, message, files))
        return sha


@dataclass
class Hub:
    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: Files = field(default_factory=dict)  # large files by sha256
    paths: list[str] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)
    people: dict[str, str] = field(default_factory=lambda: {TOKEN: OWNER})
    roles: dict[str, str] = field(default_factory=dict)  # of tokens that may not write


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def object_id(path: str, data: bytes) -> str:
    """What the client compares to see whether a file has changed."""
    if is_large(path):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.paths.append(f"{self.command} {path}")
        sent = self.headers.get("Authorization")
        self.token = (sent or "").removeprefix("Bearer ")
        self.owner = self.hub.people.get(self.token)
        self.known = self.owner is not None
        if status := next(
            (s for prefix, s in self.hub.faults.items() if path.startswith(prefix)), 0
        ):
            self.reply({"error": "a fault of the test"}, status)
        elif sent and not self.known:
            message = "Invalid credentials in Authorization header"
            self.reply({"error": message}, 401, {"X-Error-Message": message})
        else:
            for pattern, action in ROUTES:
                if found := re.fullmatch(pattern, f"{self.command} {path}"):
                    return action(self, *found.groups())
            self.reply({"error": f"no such address: {path}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = route

    def reply(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for key, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def find(self, name: str, write: bool = False) -> Repository | None:
        """The repository, or None once the refusal has been sent."""
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not name.startswith(f"{self.owner}/")):
            status = 404 if self.known else 401
            self.reply({"error": "not found"}, status, {"X-Error-Code": "RepoNotFound"})
        elif write and not (self.known and (self.requested or name.startswith(f"{self.owner}/"))):
            self.reply({"error": "you have no write access"}, 403)
        else:
            return found
        return None

    @property
    def requested(self) -> bool:
        """Whether a pull request is meant, which anybody may open."""
        return "create_pr=1" in self.path or self.path.endswith("/info/lfs/objects/batch")

    def whoami(self) -> None:
        role = self.hub.roles.get(self.token, "write")
        auth = {"type": "access_token", "accessToken": {"role": role}}
        orgs = [{"name": "readers", "roleInOrg": "read"}, {"name": "team", "roleInOrg": "write"}]
        told = {"name": self.owner, "orgs": orgs, "auth": auth} if self.known else {}
        self.reply(told, 200 if self.known else 401)

    def validate(self) -> None:
        self.reply({"errors": [], "warnings": []})

    def create(self) -> None:
        asked = json.loads(self.body)
        owner = asked.get("organization") or self.owner
        name = f"{owner}/{asked['name']}"
        if owner != self.owner or not self.known:
            return self.reply({"error": "no rights"}, 403 if self.known else 401)
        there = name in self.hub.repositories
        if not there:
            self.hub.repositories[name] = Repository(asked.get("visibility") == "private")
        return self.reply({"url": f"{self.hub.url}/{name}"}, 409 if there else 200)

    def branch(self, name: str, revision: str) -> None:
        if repository := self.find(name, write=True):
            there = revision in repository.branches
            repository.branches.setdefault(revision, list(repository.commits))
            self.reply({}, 409 if there else 200)

    def preupload(self, name: str, revision: str) -> None:
        if repository := self.find(name, write=True):
            files = []
            for path in (entry["path"] for entry in json.loads(self.body)["files"]):
                mode = "lfs" if is_large(path) else "regular"
                files.append({"path": path, "uploadMode": mode, "shouldIgnore": False})
                if path in repository.files:
                    files[-1]["oid"] = object_id(path, repository.files[path])
            self.reply({"files": files})

    def batch(self, name: str) -> None:
        if self.find(name, write=True):
            rows = json.loads(self.body)["objects"]
            for row in rows:
                if row["oid"] not in self.hub.objects:
                    row["actions"] = {"upload": {"href": f"{self.hub.url}/objects/{row['oid']}"}}
            self.reply({"transfer": "basic", "objects": rows})

    def store(self, oid: str) -> None:
        whole = hashlib.sha256(self.body).hexdigest() == oid
        if whole:
            self.hub.objects[oid] = self.body
        self.reply({}, 200 if whole else 400)

    def commit(self, name: str, revision: str) -> None:
        if repository := self.find(name, write=True):
            if self.requested:
                revision = f"refs/pr/{len(repository.branches) + 1}"
                repository.branches[revision] = list(repository.commits)
            before = repository.of(revision)
            files, message = dict(before[-1][2]) if before else {}, ""
            for row in map(json.loads, self.body.splitlines()):
                value = row["value"]
                if row["key"] == "header":
                    message = value["summary"]
                elif row["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif row["key"] == "deletedFile":
                    files.pop(value["path"])
                elif row["key"] == "lfsFile":
                    files[value["path"]] = self.hub.objects[value["oid"]]
            sha = repository.commit(message, files, revision)
            told = {"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha}
            if self.requested:
                number = revision.rpartition("/")[2]
                told["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{number}"
            self.reply(told)

    def info(self, name: str, revision: str | None = None) -> None:
        if repository := self.find(name):
            sha = repository.commits[-1][0] if repository.commits else None
            self.reply({"id": name, "sha": sha, "private": repository.private, "tags": []})

    def tree(self, name: str, revision: str) -> None:
        if repository := self.find(name):
            rows: list[dict[str, Any]] = []
            for path, data in repository.files.items():
                oid, size = object_id(path, data), len(data)
                rows.append({"type": "file", "path": path, "size": size, "oid": oid})
                if is_large(path):
                    rows[-1]["lfs"] = {"oid": oid, "size": size, "pointerSize": 134}
            self.reply(rows)

    def resolve(self, name: str, revision: str, path: str) -> None:
        if repository := self.find(name):
            branch = repository.branches.get(revision)
            for sha, _, files in reversed(repository.commits if branch is None else branch):
                if revision in ("main", sha, *repository.branches) and path in files:
                    etag = f'"{object_id(path, files[path])}"'
                    return self.reply(files[path], 200, {"ETag": etag, "X-Repo-Commit": sha})
            self.reply({}, 404, {"X-Error-Code": "EntryNotFound"})


ID = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, Any]] = [
    ("GET /api/whoami-v2", Handler.whoami),
    ("POST /api/validate-yaml", Handler.validate),
    ("POST /api/repos/create", Handler.create),
    (f"POST /api/models/{ID}/branch/(.+)", Handler.branch),
    (f"POST /api/models/{ID}/preupload/(.+)", Handler.preupload),
    (f"POST /{ID}.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /objects/(\w+)", Handler.store),
    (f"POST /api/models/{ID}/commit/(.+)", Handler.commit),
    (rf"GET /api/models/{ID}(?:/revision/([^/]+))?", Handler.info),
    (rf"GET /api/models/{ID}/tree/([^/]+)", Handler.tree),
    (rf"(?:GET|HEAD) /{ID}/resolve/([^/]+)/(.+)", Handler.resolve),
]


@contextmanager
def serve() -> Iterator[Hub]:
    """A Hub on a free port of this machine for as long as the block runs."""
    hub = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
