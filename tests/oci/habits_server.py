"""A registry server with the habits of one that people use, and its storage under another name."""

import base64
import json
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, pairwise
from pathlib import Path
from typing import ClassVar, Final
from urllib.parse import parse_qs, urlsplit

from pipeline.core.file_records import Digest
from tests.oci.registry_habits import HANG_UP, Habits, Login, Progress, Range
from tests.registry_server import PASSWORD, USER, docker_config
from tests.support import answering

IDENTITY_TOKEN: Final = "an identity t0ken"
TAGS: Final = tuple(f"1.0.{number}" for number in range(7))
TAGS_PER_PAGE: Final = 3
WRITES: Final = ("POST", "PATCH", "PUT")


@dataclass
class Upload:
    """One upload: its bytes, where its parts ended, and the bytes that the last one had."""

    data: bytearray = field(default_factory=bytearray)
    ends: list[int] = field(default_factory=list)
    last_part: bytes = b""


@dataclass
class FakeRegistry:
    """What a registry holds, and what it has seen.

    `received` counts the bytes of blobs that arrived, `part_bytes` those of each part that was
    taken. `break_after` breaks one connection when it would take more than so many bytes in all.
    """

    habits: Habits
    url: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=count)
    received: int = 0
    taken: int = 0
    part_bytes: list[int] = field(default_factory=list)
    break_after: int | None = None
    storage_logins: list[str | None] = field(default_factory=list)
    token_requests: list[dict[str, list[str]]] = field(default_factory=list)
    defects: list[str] = field(default_factory=list)

    @property
    def host(self) -> str:
        """`name:port`."""
        return self.url.split("://")[1]


class Handler(BaseHTTPRequestHandler):
    """The protocol, bent by `registry.habits`."""

    registry: ClassVar[FakeRegistry]
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        """Answer one request."""
        registry, url = self.registry, urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.name = url.path.rsplit("/", 1)[1]
        if url.path == "/token":
            self.answer_token()
        elif url.path.startswith("/storage/"):
            self.answer_storage()
        elif not self.is_let_in():
            self.drain()
            self.answer(401, {"WWW-Authenticate": self.challenge()}, self.error("UNAUTHORIZED"))
        elif registry.habits.sets_cookies and self.headers["Cookie"]:
            self.drain()
            self.answer(403, {}, self.error("FORBIDDEN", "CSRF token not found in request"))
        elif "/blobs/uploads/" in url.path:
            getattr(self, f"upload_{self.command.lower()}")()
        elif "/blobs/" in url.path:
            self.answer_blob()
        elif url.path.endswith("/tags/list"):
            self.answer_tags()
        else:
            self.answer_manifest()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = handle_any  # noqa: N815

    # Logins

    def is_let_in(self) -> bool:
        """Whether the request has a login that is good for what it does."""
        given = self.headers["Authorization"] or ""
        if self.registry.habits.login is Login.BASIC:
            return given == basic_login()
        return "push" in given if self.command in WRITES else given.startswith("Bearer ")

    def challenge(self) -> str:
        """How to log in."""
        habits = self.registry.habits
        if habits.login is Login.BASIC:
            return 'Basic realm="registry"'
        scope = f',scope="{habits.challenge_scope}"' if habits.challenge_scope else ""
        return f'Bearer realm="{self.registry.url}/token",service="registry"{scope}'

    def answer_token(self) -> None:
        """A token that names the actions it is good for."""
        is_identity = self.registry.habits.login is Login.IDENTITY
        form = parse_qs(self.drain().decode()) if self.command == "POST" else self.query
        self.registry.token_requests.append(form)
        if is_identity:
            is_right = form.get("refresh_token") == [IDENTITY_TOKEN]
        else:
            is_right = self.headers["Authorization"] == basic_login()
        if not is_right:
            self.answer(401, {}, self.error("UNAUTHORIZED", f"bad login {IDENTITY_TOKEN}"))
            return
        repository, actions = form["scope"][0].rsplit(":", 1)
        assert repository == "repository:a/b"
        key = "access_token" if is_identity else "token"
        self.answer(200, {}, json.dumps({key: f"for-{actions}"}).encode())

    # Uploads

    def upload_post(self) -> None:
        """Begin an upload; nothing is ever mounted."""
        status = self.registry.habits.mount_status
        if "mount" in self.query and status != 202:
            self.answer(status, {}, self.error("INVALID_REQUEST", "Missing `from` argument"))
            return
        name = f"upload-{next(self.registry.numbers)}"
        self.registry.uploads[name] = Upload()
        self.answer(202, {"Location": self.location(name), "Range": "0-0"})

    def upload_get(self) -> None:
        """Say how much of an upload is there."""
        upload = self.upload()
        if upload is None or self.registry.habits.progress is Progress.UNKNOWN:
            self.answer(404, {}, self.error("BLOB_UPLOAD_UNKNOWN"))
            return
        end = max(len(upload.data) - 1, 0)
        shown = f"0-{end}"
        if self.registry.habits.progress is Progress.ONE_TOO_MANY:
            shown = f"bytes=0-{len(upload.data)}"
        self.answer(204, {"Location": self.location(self.name), "Range": shown})

    def upload_patch(self) -> None:
        """Take one part."""
        habits, upload = self.registry.habits, self.upload()
        match = re.fullmatch(r"(\d+)-(\d+)", self.headers["Content-Range"] or "")
        if not habits.takes_parts or match is None:
            self.refuse(400, b"<HTML><HEAD><TITLE>Request Error</TITLE></HEAD></HTML>")
        elif upload is None:
            self.refuse(404, self.error("BLOB_UPLOAD_UNKNOWN"))
        elif not self.is_too_large(habits.largest_part):
            start, held = int(match[1]), len(upload.data)
            if start == held or (habits.skips_overlap and 0 < start < held):
                self.take_part(upload, start)
            elif habits.names_expected_start:
                said = f"First byte of the layer part is {start} instead of {held}"
                self.refuse(416, self.error("BLOB_UPLOAD_INVALID", said))
            else:
                self.refuse(416, b"", {"Range": f"0-{held}"})

    def take_part(self, upload: Upload, start: int) -> None:
        """Keep a part but for what is there, and say how much there is now."""
        habits = self.registry.habits
        upload.last_part = self.receive(upload)
        upload.data += upload.last_part[len(upload.data) - start :]
        upload.ends.append(len(upload.data))
        self.registry.part_bytes.append(len(upload.last_part))
        end = upload.ends[0 if habits.part_range is Range.FIRST else -1] - 1
        shown = {} if habits.part_range is Range.NONE else {"Range": f"0-{end}"}
        self.answer(habits.part_status, {"Location": self.location(self.name), **shown})

    def upload_put(self) -> None:
        """Close an upload under its digest."""
        habits, upload = self.registry.habits, self.upload()
        if upload is None:
            self.refuse(404, self.error("BLOB_UPLOAD_UNKNOWN"))
            return
        if self.is_too_large(habits.largest_whole):
            return
        upload.data += self.receive(upload)
        digest = self.query["digest"][0]
        sizes = [end - start for start, end in pairwise([0, *upload.ends])]
        if any(size < habits.least_part for size in sizes[:-1]):
            said = "All layer parts except the last part should be at least 5MB"
            self.answer(400, {}, self.error("BLOB_UPLOAD_INVALID", said))
        elif upload.ends and not habits.keeps_parts:
            self.close(digest, upload.last_part)
        elif Digest.of(bytes(upload.data)) == digest:
            self.close(digest, bytes(upload.data))
        else:
            self.answer(400, {}, self.error("DIGEST_INVALID"))

    def close(self, digest: str, data: bytes) -> None:
        """Have a blob from now on."""
        self.registry.blobs[digest] = data
        del self.registry.uploads[self.name]
        self.answer(201, self.digest_header(digest))

    def upload(self) -> Upload | None:
        """The upload that is asked for, at its newest address."""
        upload = self.registry.uploads.get(self.name)
        if upload and self.registry.habits.state_in_location:
            is_new = self.query.get("_state") == [str(len(upload.data))]
            return upload if is_new or self.command == "GET" else None
        return upload

    def location(self, name: str) -> str:
        """The address of an upload."""
        habits = self.registry.habits
        path = f"/v2/a/b/blobs/uploads/{name}"
        if habits.state_in_location:
            path += f"?_state={len(self.registry.uploads[name].data)}"
        return (self.registry.url if habits.absolute_locations else "") + path

    def is_too_large(self, limit: int | None) -> bool:
        """Refuse a body above `limit` in the registry's own way."""
        habits = self.registry.habits
        if limit is None or int(self.headers["Content-Length"]) <= limit:
            return False
        if habits.too_large_status == HANG_UP:
            self.registry.received += len(self.rfile.read(limit))
            self.hang_up()
        if not habits.reads_what_is_too_large:
            self.answer(habits.too_large_status, {"Connection": "close"}, habits.too_large_body)
            self.hang_up()
        self.refuse(habits.too_large_status, habits.too_large_body)
        return True

    def refuse(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Read what was sent in vain, and say why."""
        self.registry.received += len(self.drain())
        self.answer(status, headers or {}, body)

    def receive(self, upload: Upload) -> bytes:
        """The body of a request; what came before the connection breaks may stay in the upload."""
        registry = self.registry
        length = int(self.headers["Content-Length"] or 0)
        breaks = registry.break_after is not None and registry.taken + length > registry.break_after
        if breaks:
            assert registry.break_after is not None
            length, registry.break_after = registry.break_after - registry.taken, None
        data = self.rfile.read(length)
        registry.received += length
        registry.taken += length
        if breaks:
            if registry.habits.keeps_broken_parts:
                upload.data += data
            self.hang_up()
        return data

    # Blobs, manifests and tags

    def answer_blob(self) -> None:
        """A blob, or where it lies."""
        habits, data = self.registry.habits, self.registry.blobs.get(self.name)
        if data is None:
            self.answer(404, {}, self.error("BLOB_UNKNOWN"))
        elif habits.sends_on_to_storage and (self.command == "GET" or habits.sends_head_on):
            port = self.registry.host.split(":")[1]
            self.answer(307, {"Location": f"http://localhost:{port}/storage/{self.name}?sig=x"})
        else:
            self.answer(200, self.digest_header(self.name), data)

    def answer_storage(self) -> None:
        """A blob for those who show the address alone, and want to have it."""
        login = self.headers["Authorization"]
        self.registry.storage_logins.append(login)
        if login is not None:
            said = b"<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism</Message>"
            self.answer(400, {}, said)
        elif self.command == "HEAD":
            self.answer(403, {})
        elif self.headers["Range"] == "bytes=0-0":
            data = self.registry.blobs[self.name]
            self.answer(206, {"Content-Range": f"bytes 0-0/{len(data)}"}, data[:1])
        else:
            self.answer(200, {}, self.registry.blobs[self.name])

    def answer_manifest(self) -> None:
        """Keep a manifest, or give one back."""
        if self.command == "PUT":
            data, kind = self.drain(), self.headers["Content-Type"]
            for name in (self.name, Digest.of(data)):
                self.registry.manifests[name] = (kind, data)
            self.answer(201, {})
        elif self.name in self.registry.manifests:
            kind, data = self.registry.manifests[self.name]
            self.answer(200, {"Content-Type": kind, **self.digest_header(Digest.of(data))}, data)
        else:
            self.answer(404, {}, self.error("MANIFEST_UNKNOWN"))

    def answer_tags(self) -> None:
        """One page of tags, and where the next one is."""
        is_opaque = self.registry.habits.opaque_cursor
        cursor = self.query.get("next_page" if is_opaque else "last", [""])[0]
        last = base64.b64decode(cursor).decode() if is_opaque else cursor
        rest = [tag for tag in TAGS if tag > last]
        page = rest[:TAGS_PER_PAGE]
        headers = {}
        if page != rest:
            following = f"n={TAGS_PER_PAGE}&last={page[-1]}"
            if is_opaque:
                shown = base64.b64encode(page[-1].encode()).decode().replace("=", "%3D")
                following = f"next_page={shown}&n={TAGS_PER_PAGE}"
            headers["Link"] = f'<{urlsplit(self.path).path}?{following}>; rel="next"'
        self.answer(200, headers, json.dumps({"name": "a/b", "tags": page}).encode())

    # Answers

    def digest_header(self, digest: str) -> dict[str, str]:
        """The header that names a digest, where the registry has that habit."""
        return {"Docker-Content-Digest": digest} if self.registry.habits.names_digests else {}

    def error(self, code: str, message: str = "no") -> bytes:
        """The body of a refusal."""
        return json.dumps({"errors": [{"code": code, "message": message}]}).encode()

    def drain(self) -> bytes:
        """The body of a request."""
        return self.rfile.read(int(self.headers["Content-Length"] or 0))

    def hang_up(self) -> None:
        """Close the connection at once, with what was not read yet."""
        self.connection.shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        """Send an answer."""
        self.send_response(status)
        if self.registry.habits.sets_cookies:
            self.send_header("Set-Cookie", "sid=1; Path=/")
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def basic_login() -> str:
    """The `Authorization` header of USER."""
    return "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


def log_in(registry: FakeRegistry, directory: Path) -> None:
    """Write what `docker login`, or `az acr login`, leaves behind."""
    if registry.habits.login is Login.IDENTITY:
        nobody = base64.b64encode(b"00000000-0000-0000-0000-000000000000:").decode()
        login = {"auth": nobody, "identitytoken": IDENTITY_TOKEN}
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps({"auths": {registry.host: login}}))
    else:
        docker_config(directory, registry.host, USER, PASSWORD)


@contextmanager
def serving(habits: Habits) -> Iterator[FakeRegistry]:
    """A registry with `habits` that listens as long as the block runs."""

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            error = sys.exception()
            if not isinstance(error, ConnectionAbortedError):  # that one is on purpose
                registry.defects.append(repr(error))

    registry = FakeRegistry(habits)
    server = Quiet(("127.0.0.1", 0), type("Bound", (Handler,), {"registry": registry}))
    try:
        with answering(server) as host:
            registry.url = f"http://{host}"
            yield registry
    finally:
        assert registry.defects == []
