"""A stand-in for the Hugging Face hub: repositories in memory behind the part of its HTTP API that is used here."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_stand_in"


class Hub(ThreadingHTTPServer):
    """Repositories by name: the files of each branch and commit."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.created: dict[str, dict] = {}  # what was asked when a repository was made
        self.messages: list[str] = []
        self.uploads: dict[str, bytes] = {}  # of large files, by their digest
        self.cut: tuple[str, int] | None = None  # a file, and after how many of its bytes the connection is cut
        self.gone: bool | None = False  # whether nothing is answered; None = from that cut on
        self.sent: list[tuple[str, str]] = []  # files that were sent, and the ranges that were asked for
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        raise


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _commit(files: dict[str, bytes]) -> str:
    return _digest(repr(sorted((name, _digest(content)) for name, content in files.items())).encode())


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"
    left: int | None = None  # bytes that are sent of an answer before the connection is cut; None = all

    def log_message(self, format, *args):
        pass

    def answer(self, status=200, body=b"", **headers):
        self.send_response(status)
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: self.left])
            if self.left is not None:
                self.close_connection, self.server.cut = True, None
                self.server.gone = self.server.gone is None

    def missing(self, what):
        self.answer(404, {"error": f"{what} not found"}, X_Error_Code=f"{what}NotFound", X_Error_Message="not found")

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size + 2)[:-2]
        self.rfile.readline()
        return content

    def parts(self):
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

    def files(self, name, revision):
        return None if (repository := self.server.repositories.get(name)) is None else repository.get(revision)

    def do_GET(self):
        self.left = None
        if self.server.gone:  # no answer at all
            self.close_connection = True
            return
        match self.parts():
            case ["api", "models", owner, name, *rest]:
                self.describe(f"{owner}/{name}", rest)
            case [owner, name, "resolve", revision, *path]:
                self.send_file(f"{owner}/{name}", revision, "/".join(path))
            case _:
                self.missing("Entry")

    def do_HEAD(self):
        self.do_GET()

    def describe(self, name, rest):
        revision = rest[1] if len(rest) > 1 else "main"
        if name not in self.server.repositories:
            return self.missing("Repo")
        if (files := self.files(name, revision)) is None:
            return self.missing("Revision")
        listed = [
            {"type": "file", "path": n, "size": len(v), "oid": hashlib.sha1(v).hexdigest()} for n, v in files.items()
        ]
        if rest and rest[0] == "tree":
            return self.answer(200, listed)
        siblings = [{"rfilename": n} for n in files]
        self.answer(200, {"id": name, "modelId": name, "sha": _commit(files), "siblings": siblings, "private": False})

    def send_file(self, name, revision, path):
        if (files := self.files(name, revision)) is None:
            return self.missing("Repo" if name not in self.server.repositories else "Revision")
        if path not in files:
            return self.missing("Entry")
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        size, status, more = len(files[path]), 200, {}
        if first:
            status, more = 206, {"Content-Range": f"bytes {first}-{size - 1}/{size}"}
        if self.command == "GET":
            self.server.sent.append((path, self.headers.get("Range", "")))
        if self.server.cut is not None and self.server.cut[0] == path:
            self.left = self.server.cut[1]
        self.answer(status, files[path][first:], ETag=f'"{_digest(files[path])}"', X_Repo_Commit=_commit(files), **more)

    def do_POST(self):
        body, parts = self.body(), self.parts()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and parts[1:2] != ["validate-yaml"]:
            return self.answer(401, {"error": "Invalid credentials"})
        match parts:
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'me'}/{asked['name']}"
                if name in self.server.repositories:
                    return self.answer(409, {"error": "You already created this model repo", "url": name})
                self.server.repositories[name], self.server.created[name] = {"main": {}}, asked
                self.answer(200, {"url": f"{self.server.url}/{name}", "name": name})
            case ["api", "validate-yaml"]:
                self.answer(200, {"errors": [], "warnings": []})
            case ["api", "models", owner, name, "branch", branch]:
                repository = self.server.repositories[f"{owner}/{name}"]
                if branch in repository:
                    return self.answer(409, {"error": "Reference already exists"})
                repository[branch] = dict(repository["main"])
                self.answer(201, {})
            case ["api", "models", _, _, "preupload", _]:
                large = (".safetensors", ".pt")
                modes = [
                    {
                        "path": f["path"],
                        "uploadMode": "lfs" if f["path"].endswith(large) else "regular",
                        "shouldIgnore": False,
                    }
                    for f in json.loads(body)["files"]
                ]
                self.answer(200, {"files": modes})
            case [_, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
                asked = json.loads(body)["objects"]
                actions = [
                    {**o, "actions": {"upload": {"href": f"{self.server.url}/upload/{o['oid']}"}}} for o in asked
                ]
                self.answer(200, {"transfer": "basic", "objects": actions})
            case ["api", "models", owner, name, "commit", revision]:
                self.take(f"{owner}/{name}", revision, body)
            case _:
                self.missing("Entry")

    def do_PUT(self):
        content = self.body()
        assert hashlib.sha256(content).hexdigest() == self.parts()[1]
        self.server.uploads[self.parts()[1]] = content
        self.answer()

    def take(self, name, revision, body):
        """Makes a commit on a branch."""
        repository = self.server.repositories[name]
        files = dict(repository[revision])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    self.server.messages.append(value["summary"])
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.uploads[value["oid"]]
        commit = _commit(files)
        repository[revision] = repository[commit] = files
        self.answer(
            200, {"success": True, "commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit}
        )


@contextmanager
def serve_hub(patch: pytest.MonkeyPatch, cache: str) -> Iterator[Hub]:
    """Serves an empty hub and has huggingface_hub use it, with a cache of its own, as HF_ENDPOINT would."""
    from huggingface_hub import close_session, constants

    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": False,
            "HF_HUB_CACHE": cache,
        }.items():
            patch.setattr(constants, name, value)
        patch.setenv("HF_TOKEN", TOKEN)
        close_session()
        try:
            yield hub
        finally:
            close_session()
            hub.shutdown()
            thread.join()
