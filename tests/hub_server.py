"""A small Hub on this machine: the part of its protocol that pushing and pulling models uses.

`with serve() as hub:` gives `hub.url` for HF_ENDPOINT and `hub.repositories` to look into.
`hub.paths` and `hub.faults` (path prefix -> status) let a test watch and disturb it.
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
    """One repository: its commits as (id, message, all files), and which files are large."""

    private: bool = False
    commits: list[tuple[str, str, Files]] = field(default_factory=list)

    @property
    def files(self) -> Files:
        return self.commits[-1][2] if self.commits else {}

    def commit(self, message: str, files: Files) -> str:
        sha = hashlib.sha1(repr((len(self.commits), message, sorted(files.items()))).encode())
        self.commits.append((sha.hexdigest(), message, files))
        return sha.hexdigest()


@dataclass
class Hub:
    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # large files by sha256
    paths: list[str] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def object_id(path: str, data: bytes) -> str:
    """What the client compares to see whether a file has changed."""
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data)
    return hashlib.sha256(data).hexdigest() if is_large(path) else blob.hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self.read_chunks()
        self.hub.paths.append(f"{self.command} {path}")
        for prefix, status in self.hub.faults.items():
            if path.startswith(prefix):
                return self.reply({"error": "a fault of the test"}, status)
        sent = self.headers.get("Authorization")
        self.known = sent == f"Bearer {TOKEN}"
        if sent and not self.known:
            message = "Invalid credentials in Authorization header"
            return self.reply({"error": message}, 401, {"X-Error-Message": message})
        for pattern, action in ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return action(self, body, *found.groups())
        return self.reply({"error": f"no such address: {path}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def read_chunks(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def reply(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for key, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def find(self, name: str, write: bool = False) -> Repository | None:
        """The repository, or None once the refusal has been sent."""
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self.known):
            code = {"X-Error-Code": "RepoNotFound"}
            self.reply({"error": "not found"}, 404 if self.known else 401, code)
            return None
        if write and not (self.known and name.startswith(f"{OWNER}/")):
            self.reply({"error": "you have no write access"}, 403)
            return None
        return found

    def whoami(self, body: bytes) -> None:
        known = {"name": OWNER, "orgs": []}
        self.reply(known if self.known else {"error": "unknown"}, 200 if self.known else 401)

    def validate(self, body: bytes) -> None:
        self.reply({"errors": [], "warnings": []})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        owner = asked.get("organization") or OWNER
        name = f"{owner}/{asked['name']}"
        if not self.known:
            return self.reply({"error": "Invalid username or password."}, 401)
        if owner != OWNER:
            return self.reply({"error": f"no rights to create a model under {owner}"}, 403)
        there = name in self.hub.repositories
        if not there:
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.hub.repositories[name] = Repository(private)
        return self.reply({"url": f"{self.hub.url}/{name}"}, 409 if there else 200)

    def preupload(self, body: bytes, name: str) -> None:
        if repository := self.find(name, write=True):
            files = []
            for entry in json.loads(body)["files"]:
                path, mode = entry["path"], "lfs" if is_large(entry["path"]) else "regular"
                row = {"path": path, "uploadMode": mode, "shouldIgnore": False}
                if path in repository.files:
                    row["oid"] = object_id(path, repository.files[path])
                files.append(row)
            self.reply({"files": files})

    def batch(self, body: bytes, name: str) -> None:
        if self.find(name, write=True):
            rows: list[dict[str, Any]] = []
            for entry in json.loads(body)["objects"]:
                upload = {"upload": {"href": f"{self.hub.url}/objects/{entry['oid']}"}}
                missing = entry["oid"] not in self.hub.objects
                rows.append({**entry, **({"actions": upload} if missing else {})})
            self.reply({"transfer": "basic", "objects": rows})

    def store(self, body: bytes, oid: str) -> None:
        whole = hashlib.sha256(body).hexdigest() == oid
        if whole:
            self.hub.objects[oid] = body
        self.reply({}, 200 if whole else 400)

    def commit(self, body: bytes, name: str) -> None:
        if repository := self.find(name, write=True):
            files, message = dict(repository.files), ""
            for line in body.splitlines():
                row = json.loads(line)
                key, value = row["key"], row["value"]
                if key == "header":
                    message = value["summary"]
                elif key == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif key == "lfsFile":
                    files[value["path"]] = self.hub.objects[value["oid"]]
                elif key == "deletedFile":
                    del files[value["path"]]
            sha = repository.commit(message, files)
            self.reply({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})

    def info(self, body: bytes, name: str, revision: str | None = None) -> None:
        if repository := self.find(name):
            sha = repository.commits[-1][0] if repository.commits else None
            siblings = [{"rfilename": path} for path in repository.files]
            known = {"id": name, "sha": sha, "private": repository.private, "siblings": siblings}
            self.reply({**known, "tags": [], "downloads": 0, "likes": 0})

    def tree(self, body: bytes, name: str, revision: str) -> None:
        if repository := self.find(name):
            rows = []
            for path, data in repository.files.items():
                row: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
                row["oid"] = object_id(path, data)
                if is_large(path):
                    row["lfs"] = {"oid": row["oid"], "size": len(data), "pointerSize": 134}
                rows.append(row)
            self.reply(rows)

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        if repository := self.find(name):
            for sha, _, files in reversed(repository.commits):
                if revision in ("main", sha) and path in files:
                    etag = f'"{object_id(path, files[path])}"'
                    return self.reply(files[path], 200, {"ETag": etag, "X-Repo-Commit": sha})
            self.reply({}, 404, {"X-Error-Code": "EntryNotFound"})

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


ID = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, Any]] = [
    ("GET /api/whoami-v2", Handler.whoami),
    ("POST /api/validate-yaml", Handler.validate),
    ("POST /api/repos/create", Handler.create),
    (f"POST /api/models/{ID}/preupload/main", Handler.preupload),
    (f"POST /{ID}.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /objects/(\w+)", Handler.store),
    (f"POST /api/models/{ID}/commit/main", Handler.commit),
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
