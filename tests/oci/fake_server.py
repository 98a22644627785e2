"""A server that answers each request of a registry client as a test wants it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support import answering


@dataclass
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass
class Seen:
    method: str
    path: str
    authorization: str | None
    body: bytes


@dataclass
class FakeServer:
    """Answers each request with what `answer(method, path)` says, and remembers all of them."""

    host: str
    seen: list[Seen]

    @property
    def url(self) -> str:
        return f"http://{self.host}"


@contextmanager
def fake_server(answer: Callable[[str, str], Answer]) -> Iterator[FakeServer]:
    seen: list[Seen] = []

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            seen.append(Seen(self.command, self.path, self.headers.get("Authorization"), body))
            reply = answer(self.command, self.path)
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body)

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = handle_any  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with answering(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as host:
        yield FakeServer(host, seen)


def healthy(method: str, path: str) -> Answer:
    """A registry that has nothing and takes everything."""
    if method in ("HEAD", "GET"):
        return Answer(404)
    if method == "POST":
        return Answer(202, {"Location": "/v2/upload/1?_state=secret"})
    return Answer(201)


def token_server(method: str, path: str) -> Answer:
    return Answer(
        200, {"Content-Type": "application/json"}, json.dumps({"token": "t0ken"}).encode()
    )
