"""A hub on the loopback device that serves a few repositories, and misbehaves as it is told."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".pt", ".pth", ".bin", ".safetensors")


@dataclass
class FakeHub:
    """Repositories by id, each a dict of file names and contents."""

    repositories: dict[str, dict[str, bytes]]
    status: dict[str, int] = field(default_factory=dict)
    """Repository id, or ``id/file``, to the status that it answers instead."""
    tokens: dict[str, str] = field(default_factory=dict)
    """Repository id to the only token that may read its files."""
    cut_after: dict[str, int] = field(default_factory=dict)
    """File name to the bytes after which its connections break."""
    cuts: int = 1
    """How many connections of a file break."""
    silent: bool = False
    """A connection that would break says nothing more instead, until the hub closes."""
    altered: set[str] = field(default_factory=set)
    """Files whose content is not what the listing states."""
    no_ranges: bool = False
    slow: float = 0.0
    """Seconds before each kilobyte."""
    redirect: str = ""
    """Another server that files are fetched from."""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path and headers of every request."""

    def __enter__(self) -> Self:
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fetched(self) -> list[str]:
        """File names asked for, in order."""
        return [
            path.split("/resolve/")[1].split("/", 1)[1]
            for method, path, _ in self.requests
            if method == "GET" and "/resolve/" in path
        ]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self
        broken: dict[str, int] = {}

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer()

            def do_GET(self) -> None:
                self.answer()

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.answer()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

            def answer(self) -> None:
                path = unquote(urlsplit(self.path).path)
                headers = {name.title(): value for name, value in self.headers.items()}
                hub.requests.append((self.command, path, headers))
                if path.startswith("/api/models/"):
                    self.api(path.removeprefix("/api/models/").split("/"))
                else:
                    repo_id, _, rest = path.lstrip("/").partition("/resolve/")
                    self.file(repo_id, rest.partition("/")[2])

            def api(self, parts: list[str]) -> None:
                repo_id = "/".join(parts[:2])
                if not self.admitted(repo_id, f"{repo_id}/api"):
                    return
                if parts[2:3] == ["auth-check"]:
                    if self.allowed(repo_id):
                        self.json({})
                elif parts[2:3] == ["tree"]:
                    self.json([self.tree(n, c) for n, c in hub.repositories[repo_id].items()])
                elif parts[2:3] == ["revision"] and parts[3] not in (COMMIT, "main"):
                    known = len(parts[3]) == 40
                    self.json(self.info(repo_id)) if known else self.refuse(404, "RevisionNotFound")
                else:
                    self.json(self.info(repo_id))

            def info(self, repo_id: str) -> dict[str, Any]:
                files = hub.repositories[repo_id].items()
                siblings = [self.sibling(name, content) for name, content in files]
                return {"id": repo_id, "sha": COMMIT, "siblings": siblings}

            def sibling(self, name: str, content: bytes) -> dict[str, Any]:
                stated = {"rfilename": name, "size": len(content), "blobId": blob(content)}
                if name.endswith(LARGE):
                    sha256 = hashlib.sha256(content).hexdigest()
                    stated["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
                return stated

            def tree(self, name: str, content: bytes) -> dict[str, Any]:
                stated = {"type": "file", "path": name, "size": len(content), "oid": blob(content)}
                if name.endswith(LARGE):
                    sha256 = hashlib.sha256(content).hexdigest()
                    stated["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
                return stated

            def file(self, repo_id: str, name: str) -> None:
                if not self.admitted(repo_id, f"{repo_id}/{name}") or not self.allowed(repo_id):
                    return
                content = hub.repositories[repo_id].get(name)
                if content is None:
                    self.refuse(404, "EntryNotFound")
                    return
                if hub.redirect and self.command == "GET":
                    self.send_response(302)
                    self.send_header("Location", f"{hub.redirect}{self.path}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.body(name, content)

            def body(self, name: str, content: bytes) -> None:
                start = 0
                ranged = self.headers.get("Range")
                if ranged and not hub.no_ranges:
                    start = int(ranged.removeprefix("bytes=").rstrip("-"))
                digest = hashlib.sha256(content).hexdigest()
                etag = digest if name.endswith(LARGE) else blob(content)
                sent = bytes(len(content)) if name in hub.altered else content
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content) - start))
                if start:
                    last = len(content) - 1
                    self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
                self.send_header("ETag", f'"{etag}"')
                self.send_header("X-Linked-ETag", f'"{etag}"')
                self.send_header("X-Linked-Size", str(len(content)))
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                if self.command == "GET":
                    self.send(name, sent[start:])

            def send(self, name: str, content: bytes) -> None:
                end = len(content)
                if name in hub.cut_after and broken.get(name, 0) < hub.cuts:
                    broken[name] = broken.get(name, 0) + 1
                    end = min(end, hub.cut_after[name])
                for place in range(0, end, 1024):
                    time.sleep(hub.slow)
                    self.wfile.write(content[place : min(place + 1024, end)])
                if end < len(content):
                    self.wfile.flush()
                    if hub.silent:
                        hub._closing.wait(60)
                    self.close_connection = True
                    self.connection.shutdown(2)

            def admitted(self, *keys: str) -> bool:
                if keys[0] not in hub.repositories:
                    self.refuse(401, "RepoNotFound")
                    return False
                for key in keys:
                    if key in hub.status:
                        self.refuse(hub.status[key], "")
                        return False
                return True

            def allowed(self, repo_id: str) -> bool:
                wanted = hub.tokens.get(repo_id)
                given = self.headers.get("Authorization", "").removeprefix("Bearer ")
                if wanted is None or given == wanted:
                    return True
                self.refuse(403 if given == "known" else 401, "GatedRepo")
                return False

            def refuse(self, status: int, code: str) -> None:
                self.send_response(status)
                if code:
                    self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", f"told to answer {status}")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def json(self, value: object) -> None:
                content = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

        return Handler


def blob(content: bytes) -> str:
    """Git's identity of a content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
