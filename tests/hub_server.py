"""A small hub on 127.0.0.1: the part of the Hugging Face protocol that fetching a model needs.

It serves directories as repositories with one commit each, and can misbehave on demand. It keeps
the requests it got, so that a test can say what was sent and what was not downloaded again.
Protocol: https://huggingface.co/docs/hub/api and the calls that huggingface_hub makes.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.support import answering

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_a_token_of_the_test"
LFS_SUFFIXES = (".safetensors", ".bin", ".model", ".parquet", ".pth")
LARGE_BYTES = 1 << 30
"""Above this size the listed sha256 is of nothing: only the header of such a file is asked for."""

API = re.compile(r"/api/(?:models/)?((?:datasets/)?[^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?")
FILE = re.compile(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Hub:
    """The repositories by name (`datasets/ORG/NAME` for data), and the switches.

    All may be changed while it runs.

    `corrupt` files arrive with one bit flipped, `short` ones whole by all headers but too short
    for the listing, `cut` ones break off in the middle at every try; `vanished` are listed but
    answered with 404; `listed_as` lists a file under another name, `listed_with` with other
    values. A `gated` repository wants `TOKEN`. `failing` answers every request with this status,
    `page` with these bytes.
    """

    repos: dict[str, Path]
    corrupt: set[str] = field(default_factory=set)
    short: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    vanished: set[str] = field(default_factory=set)
    listed_as: dict[str, str] = field(default_factory=dict)
    listed_with: dict[str, dict[str, object]] = field(default_factory=dict)
    gated: bool = False
    failing: int | None = None
    page: bytes | None = None
    requests: list[Request] = field(default_factory=list)
    endpoint: str = ""

    def downloads(self) -> list[str]:
        """The files whose bytes were sent, in order."""
        matches = (FILE.fullmatch(it.path) for it in self.requests if it.method == "GET")
        return [match[3] for match in matches if match]


@contextmanager
def serve_hub(hub: Hub) -> Iterator[Hub]:
    """Run the hub on a free port of 127.0.0.1 for the block; `hub.endpoint` is its address."""

    class Handler(_Handler):
        state = hub

    with answering(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as host:
        hub.endpoint = f"http://{host}"
        yield hub


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """The requests are kept instead."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.requests.append(Request(self.command, path, dict(self.headers)))
        if self.state.failing is not None:
            self._send(self.state.failing, b"{}")
        elif self.state.page is not None:
            self._send(200, self.state.page)
        elif match := API.fullmatch(path):
            self._answer_api(*match.groups())
        elif match := FILE.fullmatch(path):
            self._answer_file(*match.groups())
        else:
            self._send(404, b"{}")

    def _answer_api(self, repo: str, kind: str | None, revision: str | None) -> None:
        directory = self.state.repos.get(repo)
        if directory is None:
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in (None, "main", "v1", COMMIT):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif kind == "tree":
            tree = [_tree_entry(entry) for entry in self._listing(directory)]
            self._send(200, json.dumps(tree).encode())
        else:
            info = {"_id": "0", "id": repo, "modelId": repo, "sha": COMMIT}
            self._send(200, json.dumps(info | {"siblings": self._listing(directory)}).encode())

    def _listing(self, directory: Path) -> list[dict[str, object]]:
        entries: list[dict[str, object]] = []
        for path in sorted(path for path in directory.rglob("*") if path.is_file()):
            name, size = path.relative_to(directory).as_posix(), path.stat().st_size
            data = path.read_bytes() if size <= LARGE_BYTES else b""
            entry: dict[str, object] = {"rfilename": self.state.listed_as.get(name, name)}
            entry |= {"size": size, "blobId": _git_id(data)}
            if path.suffix in LFS_SUFFIXES:
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 134}
            entries.append(entry | self.state.listed_with.get(name, {}))
        return entries

    def _answer_file(self, repo: str, revision: str, name: str) -> None:
        path = self.state.repos[repo] / name
        if self.state.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Repo-Commit": COMMIT})
            return
        if name in self.state.vanished or not path.is_file():
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        size, is_lfs = path.stat().st_size, path.suffix in LFS_SUFFIXES
        whole = path.read_bytes() if size <= LARGE_BYTES else b""
        etag = hashlib.sha256(whole).hexdigest() if is_lfs else _git_id(whole)
        middle = size // 2
        if name in self.state.corrupt:
            whole = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        if name in self.state.short:
            size = middle
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if is_lfs:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(size)}
        status, start, stop = 200, 0, size
        if ranged := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            status, start = 206, int(ranged[1])
            stop = min(stop, int(ranged[2]) + 1) if ranged[2] else stop
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        end = size // 2 if name in self.state.cut else stop
        body = whole[start:end]
        if not whole:
            with path.open("rb") as file:
                file.seek(start)
                body = file.read(end - start)
        self._send(status, body, headers, length=stop - start)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        *,
        length: int | None = None,
    ) -> None:
        """Send a response and end the connection; a body shorter than `length` is cut off."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _tree_entry(entry: dict[str, Any]) -> dict[str, object]:
    """An entry of a repository's description as its tree lists it."""
    lfs = entry.get("lfs")
    return {
        "type": "file",
        "path": entry["rfilename"],
        "size": entry["size"],
        "oid": entry["blobId"],
        **({"lfs": {**lfs, "oid": lfs["sha256"]}} if lfs else {}),
    }


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
