"""A hub on this machine: as much of the hub's HTTP interface as is asked for to load a data set or a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve(root: Path) -> Iterator[str]:
    """Serve the repositories `root`/owner/name, all at COMMIT; yields the address for HF_ENDPOINT."""
    handler = type("Handler", (_Handler,), {"root": root})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    root: Path

    def do_GET(self) -> None:
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        is_api = parts[0] == "api"
        place = parts[1:] if is_api else parts  # of a model's files, nothing stands before the owner
        owner, name, *rest = place[1:] if place[0] in ("datasets", "models") else place
        repository = self.root / owner / name
        if not repository.is_dir():
            self._answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        elif len(rest) > 1 and rest[1] not in ("main", COMMIT):  # resolve, revision or tree, then a revision
            self._answer(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        elif not is_api:
            self._file(repository / "/".join(rest[2:]))
        elif rest[:1] == ["tree"]:
            self._json(self._tree(repository, "/".join(rest[2:]), "recursive=True" in self.path))
        else:
            files = [str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()]
            facts = {"id": f"{owner}/{name}", "sha": COMMIT, "tags": [], "private": False, "downloads": 0, "likes": 0}
            self._json(facts | {"siblings": [{"rfilename": file} for file in files]})

    do_HEAD = do_GET

    def _tree(self, repository: Path, folder: str, recursive: bool) -> list[dict[str, Any]]:
        found = sorted((repository / folder).rglob("*") if recursive else (repository / folder).glob("*"))
        return [
            {
                "type": "directory" if path.is_dir() else "file",
                "oid": hashlib.sha1(str(path).encode()).hexdigest(),
                "size": path.stat().st_size,
                "path": str(path.relative_to(repository)),
            }
            for path in found
        ]

    def _file(self, path: Path) -> None:
        if path.is_file():
            content = path.read_bytes()
            self._answer(content, 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
        else:
            self._answer(b"", 404, {"X-Repo-Commit": COMMIT, "X-Error-Code": "EntryNotFound"})

    def _json(self, value: Any) -> None:
        self._answer(json.dumps(value).encode(), 200, {"Content-Type": "application/json"})

    def _answer(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass
