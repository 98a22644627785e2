"""Transfers that break: what is sent and fetched again, what is tried again, and what is kept."""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from pipeline.core.errors import FailureError, InputError
from pipeline.core.file_records import Digest
from pipeline.oci import part_sizes
from pipeline.oci import retry as registry_retry
from pipeline.oci.blob import Advance, Blob, no_progress
from pipeline.oci.records import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    Descriptor,
    ImageIndex,
    descriptor_of,
)
from pipeline.oci.registry import Registry
from pipeline.oci.store import download, transfer
from pipeline.registry.evidence import attach, find_evidence, new_evidence, read_evidence
from pipeline.registry.evidence_kinds import BOM
from tests.support import answering

PART = 1000
DATA = bytes(range(256)) * 40  # 10,240 bytes: eleven parts


@dataclass
class Memory:
    """A registry as the specification has it: uploads are resumable and referrers are listed.

    `breaks_at` cuts the connection once, after that many bytes of an upload or a download;
    `busy` answers come before the next proper one. Referrers are listed with their type, or with
    that of their config, as go-containerregistry's registry (0.21) does.
    """

    url: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    upload: bytearray | None = None
    breaks_at: int | None = None
    busy: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    received: int = 0
    sent: int = 0
    requests: list[str] = field(default_factory=list)
    connections: int = 0
    knows_ranges: bool = True
    lists_config_type: bool = False


class Handler(BaseHTTPRequestHandler):
    memory: ClassVar[Memory]
    protocol_version = "HTTP/1.1"  # connections are used again

    def setup(self) -> None:
        self.memory.connections += 1
        super().setup()

    def handle_one(self) -> None:
        memory = self.memory
        memory.requests.append(f"{self.command} {self.path.partition('?')[0]}")
        if memory.busy:
            status, headers = memory.busy.pop(0)
            self.answer(status, headers)
        elif "/blobs/uploads/" in self.path:
            self.handle_upload()
        elif "/blobs/" in self.path:
            self.handle_blob(self.path.rsplit("/", 1)[1])
        elif "/referrers/" in self.path:
            self.handle_referrers(self.path.rsplit("/", 1)[1])
        else:
            self.handle_manifest(self.path.rsplit("/", 1)[1])

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = handle_one  # noqa: N815

    def handle_upload(self) -> None:
        memory = self.memory
        location = {"Location": "/v2/a/b/blobs/uploads/1"}
        if self.command == "POST":
            memory.upload = bytearray()
            self.answer(202, location)
        elif memory.upload is None:
            self.answer(404, {})
        elif self.command == "GET":
            self.answer(204, location | {"Range": f"0-{max(len(memory.upload) - 1, 0)}"})
        elif self.command == "PATCH":
            self.receive(memory.upload)
            self.answer(202, location | {"Range": f"0-{len(memory.upload) - 1}"})
        else:
            self.receive(memory.upload)
            digest = self.path.rpartition("digest=")[2]
            if Digest.of(bytes(memory.upload)) != digest:
                self.answer(400, {})
                return
            memory.blobs[digest], memory.upload = bytes(memory.upload), None
            self.answer(201, {"Docker-Content-Digest": digest})

    def receive(self, upload: bytearray) -> None:
        """Keep what arrives, up to the byte where the connection breaks."""
        memory = self.memory
        for _ in range(int(self.headers.get("Content-Length") or 0)):
            upload += self.rfile.read(1)
            memory.received += 1
            if memory.received == memory.breaks_at:
                self.connection.shutdown(2)
                raise ConnectionAbortedError

    def handle_blob(self, digest: str) -> None:
        memory = self.memory
        data = memory.blobs.get(digest)
        if data is None:
            self.answer(404, {})
            return
        found = re.match(r"bytes=(\d+)-", self.headers["Range"] or "")
        start = int(found[1]) if found and memory.knows_ranges else 0
        shown = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        rest = data[start:]
        if memory.breaks_at is not None and self.command == "GET":
            end, memory.breaks_at = memory.breaks_at, None
            self.answer(206 if start else 200, shown, rest[:end], length=len(rest))
            self.connection.shutdown(2)
            raise ConnectionAbortedError
        self.answer(206 if start else 200, shown, rest)

    def handle_referrers(self, digest: str) -> None:
        found = []
        for data in self.memory.manifests.values():
            manifest = json.loads(data)
            listed = manifest["artifactType"]
            if self.memory.lists_config_type:
                listed = manifest["config"]["mediaType"]
            if manifest.get("subject", {}).get("digest") == digest:
                descriptor = descriptor_of(data, MANIFEST_TYPE)
                found.append(descriptor.model_copy(update={"artifact_type": listed}))
        index = ImageIndex(schema_version=2, media_type=INDEX_TYPE, manifests=tuple(found))
        self.answer(200, {"Content-Type": INDEX_TYPE}, index.to_bytes())

    def handle_manifest(self, name: str) -> None:
        if self.command == "PUT":
            data = self.rfile.read(int(self.headers["Content-Length"]))
            self.memory.manifests[name] = data
            self.answer(201, {})
        elif name in self.memory.manifests:
            kind = {"Content-Type": MANIFEST_TYPE}
            self.answer(200, kind, self.memory.manifests[name])
        else:
            self.answer(404, {})

    def answer(
        self, status: int, headers: dict[str, str], body: bytes = b"", length: int | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.memory.sent += len(body)  # before the client can have it
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def serving(memory: Memory) -> Iterator[None]:
    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a connection that was broken on purpose

    server = Quiet(("127.0.0.1", 0), type("Bound", (Handler,), {"memory": memory}))
    with answering(server) as host:
        memory.url = f"http://{host}"
        yield


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    monkeypatch.setattr(part_sizes, "PART_SIZES", (PART,))
    monkeypatch.setattr(part_sizes, "FIRST_PART_BYTES", PART)
    memory = Memory()
    with serving(memory):
        yield memory


@pytest.fixture
def blob(tmp_path: Path) -> Blob:
    path = tmp_path / "weights"
    path.write_bytes(DATA)
    return Blob(descriptor_of(DATA, "x/y"), path)


def notes(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "state").rglob("*.json"))


def test_a_blob_goes_up_in_parts_and_leaves_no_note(
    memory: Memory, blob: Blob, tmp_path: Path
) -> None:
    moved: list[int] = []
    Registry(memory.url, "a/b").push_blob(blob, moved.append)
    assert memory.blobs == {blob.descriptor.digest: DATA}
    assert memory.received == sum(moved) == len(DATA)
    assert len([request for request in memory.requests if request.startswith("PATCH")]) == 11
    assert notes(tmp_path) == []


def test_a_broken_upload_goes_on_where_it_broke(memory: Memory, blob: Blob) -> None:
    memory.breaks_at = 5432
    moved: list[int] = []
    Registry(memory.url, "a/b").push_blob(blob, moved.append)
    assert memory.blobs == {blob.descriptor.digest: DATA}
    assert memory.received == sum(moved) == len(DATA)


def test_another_run_goes_on_with_the_upload_of_a_killed_one(
    memory: Memory, blob: Blob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_retry, "PAUSES_S", ())  # it dies with the connection
    memory.breaks_at = 5432
    with pytest.raises(FailureError, match="the connection broke"):
        Registry(memory.url, "a/b").push_blob(blob, no_progress)
    (note,) = notes(tmp_path)
    assert note.parent.stat().st_mode & 0o077 == 0
    Registry(memory.url, "a/b").push_blob(blob, no_progress)
    assert memory.blobs == {blob.descriptor.digest: DATA}
    assert memory.received == len(DATA)
    assert notes(tmp_path) == []


def test_an_upload_that_the_registry_forgot_starts_over(
    memory: Memory, blob: Blob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_retry, "PAUSES_S", ())
    memory.breaks_at = 5432
    with pytest.raises(FailureError):
        Registry(memory.url, "a/b").push_blob(blob, no_progress)
    memory.upload = None
    Registry(memory.url, "a/b").push_blob(blob, no_progress)
    assert memory.blobs == {blob.descriptor.digest: DATA}
    assert memory.received == 5432 + len(DATA)


def test_an_upload_that_the_registry_damaged_starts_over_in_parts(
    memory: Memory, blob: Blob, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(registry_retry, "PAUSES_S", ())
        memory.breaks_at = 5432
        with pytest.raises(FailureError):
            Registry(memory.url, "a/b").push_blob(blob, no_progress)
    assert memory.upload is not None
    memory.upload[0] ^= 1
    Registry(memory.url, "a/b").push_blob(blob, no_progress)
    assert memory.blobs == {blob.descriptor.digest: DATA}
    assert memory.received == 2 * len(DATA)
    parts = [request for request in memory.requests if request.startswith("PATCH")]
    assert len(parts) == 6 + 5 + 11  # the last of six broke; five more, and all over again


def test_going_on_with_an_upload_needs_one_connection(
    memory: Memory, blob: Blob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_retry, "PAUSES_S", ())
    memory.breaks_at = 5432
    with pytest.raises(FailureError, match="the connection broke"):
        Registry(memory.url, "a/b").push_blob(blob, no_progress)
    memory.connections = 0
    Registry(memory.url, "a/b").push_blob(blob, no_progress)
    assert memory.connections == 1


def test_answers_that_nobody_reads_hold_no_connection(memory: Memory, blob: Blob) -> None:
    """Whatever is asked, one thread needs one connection."""
    registry = Registry(memory.url, "a/b")
    for _ in range(3):
        assert registry.manifest("tag") is None
        assert registry.tags() == ()
        assert registry.referrers("sha256:" + "0" * 64) == ()
        registry.push_blob(blob, no_progress)
        with pytest.raises(FailureError, match="answer 404"):
            list(registry.chunks(descriptor_of(b"absent", "x/y")))
    assert memory.connections == 1


def test_bytes_that_changed_are_never_named(memory: Memory, blob: Blob) -> None:
    Path(blob.source).write_bytes(DATA[:-1] + b"?")
    with pytest.raises(InputError, match="weights: not the bytes that were recorded"):
        Registry(memory.url, "a/b").push_blob(blob, no_progress)
    assert memory.blobs == {}


def test_a_small_blob_that_changed_is_not_even_sent(memory: Memory, tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"changed")
    with pytest.raises(InputError, match="not the bytes that were recorded"):
        Registry(memory.url, "a/b").push_blob(
            Blob(descriptor_of(b"correct", "x/y"), path), no_progress
        )
    assert memory.received == 0


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_download_goes_on_where_it_broke(
    memory: Memory, blob: Blob, tmp_path: Path, knows_ranges: bool
) -> None:
    """A registry without ranges sends all of it again, and what is there is passed over."""
    memory.blobs[blob.descriptor.digest] = DATA
    memory.breaks_at, memory.knows_ranges = 4321, knows_ranges
    download(Registry(memory.url, "a/b"), blob.descriptor, tmp_path / "got", no_progress)
    assert (tmp_path / "got").read_bytes() == DATA
    assert memory.sent == len(DATA) + (0 if knows_ranges else 4321)


def test_another_run_fetches_only_the_rest(memory: Memory, blob: Blob, tmp_path: Path) -> None:
    memory.blobs[blob.descriptor.digest] = DATA
    (tmp_path / "got.download").write_bytes(DATA[:9000])
    download(Registry(memory.url, "a/b"), blob.descriptor, tmp_path / "got", no_progress)
    assert (tmp_path / "got").read_bytes() == DATA
    assert memory.sent == len(DATA) - 9000


def test_a_damaged_beginning_is_found_and_thrown_away(
    memory: Memory, blob: Blob, tmp_path: Path
) -> None:
    memory.blobs[blob.descriptor.digest] = DATA
    (tmp_path / "got.download").write_bytes(b"?" * 9000)
    with pytest.raises(FailureError, match="other bytes than its digest says"):
        download(Registry(memory.url, "a/b"), blob.descriptor, tmp_path / "got", no_progress)
    assert list(tmp_path.glob("got*")) == []


def test_an_error_does_not_wait_for_what_does_not_answer() -> None:
    """And what answers later finds the transfer stopped."""
    waits, answered, stopped = threading.Event(), threading.Event(), threading.Event()

    def move(item: str, advance: Advance) -> None:
        if item == "fails":
            assert waits.wait(30)
            raise FailureError("the registry fails")
        waits.set()
        assert answered.wait(30)
        try:
            advance(1)
        except FailureError:
            stopped.set()

    began = time.monotonic()
    with pytest.raises(FailureError, match="the registry fails"):
        transfer(["waits", "fails"], move, label="test", total_bytes=1)
    assert time.monotonic() - began < 5
    answered.set()
    assert stopped.wait(30)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_registry_is_asked_again(memory: Memory, status: int) -> None:
    memory.busy = [(status, {"Retry-After": "0"}), (status, {})]
    assert Registry(memory.url, "a/b").manifest("tag") is None
    assert len(memory.requests) == 3


def test_a_registry_that_stays_busy_is_one_line(memory: Memory) -> None:
    memory.busy = [(503, {})] * 9
    with pytest.raises(FailureError, match="answer 503 to GET"):
        Registry(memory.url, "a/b").manifest("tag")
    assert len(memory.requests) == 3


def test_what_will_not_change_is_not_asked_again(memory: Memory) -> None:
    memory.busy = [(403, {})] * 9
    with pytest.raises(FailureError, match="no permission"):
        Registry(memory.url, "a/b").manifest("tag")
    assert len(memory.requests) == 1


@pytest.mark.parametrize(
    ("asked", "least", "most"), [("7", 7.0, 7.0), ("99999", 60.0, 60.0), ("soon", 0.0, 1.0)]
)
def test_the_pause_is_what_the_registry_asks_for_within_bounds(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, asked: str, least: float, most: float
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(registry_retry.time, "sleep", pauses.append)
    memory.busy = [(429, {"Retry-After": asked})]
    assert Registry(memory.url, "a/b").manifest("tag") is None
    assert least <= pauses[0] <= most


@pytest.mark.parametrize("lists_config_type", [False, True])
def test_evidence_is_found_through_the_referrers_api_without_a_tag(
    memory: Memory, lists_config_type: bool
) -> None:
    memory.lists_config_type = lists_config_type
    registry = Registry(memory.url, "a/b")
    subject = Descriptor(media_type=MANIFEST_TYPE, digest=Digest.of(b"release"), size=7)
    bom = Blob(descriptor_of(b"{}", BOM.media_type), b"{}")
    attach(registry, subject.digest, [new_evidence(subject, BOM, bom, "x.bom.json")])
    attach(registry, subject.digest, [new_evidence(subject, BOM, bom, "x.bom.json")])
    (found,) = find_evidence(registry, subject.digest)
    assert found.kind is BOM
    assert read_evidence(registry, found) == b"{}"
    assert all(name.startswith("sha256:") for name in memory.manifests)
