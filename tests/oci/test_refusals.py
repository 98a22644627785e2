"""What a registry says when it refuses: its own reason, in one clean line, with what to do."""

import json
from pathlib import Path

import pytest

from pipeline.core.errors import FailureError
from pipeline.oci import part_sizes, retry
from pipeline.oci.blob import bytes_blob, no_progress
from pipeline.oci.records import MANIFEST_TYPE
from pipeline.oci.registry import Registry
from tests.oci.fake_server import Answer, fake_server, healthy
from tests.registry_server import PASSWORD, USER, docker_config

BLOB = bytes_blob(b"some weights", "text/plain")
MANIFEST = bytes_blob(b"{}", MANIFEST_TYPE)


def errors(*entries: object) -> bytes:
    """The body of a refusal, as the distribution specification has it."""
    return json.dumps({"errors": entries}).encode()


def line_of(answer: Answer) -> str:
    """The line with which a push ends when the start of an upload is answered so."""

    def answer_all(method: str, path: str) -> Answer:
        return answer if method == "POST" else healthy(method, path)

    with fake_server(answer_all) as server, pytest.raises(FailureError) as caught:
        Registry(server.url, "a/b").push_blob(BLOB, no_progress)
    return str(caught.value)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            404,
            errors({"code": "NAME_UNKNOWN", "message": "The repository 'a/b' does not exist"}),
            "(NAME_UNKNOWN: The repository 'a/b' does not exist); see to that",
        ),
        (
            403,
            errors({"code": "DENIED", "message": "permission_denied: write_package"}),
            "has no permission for a/b (DENIED: permission_denied: write_package); ask its owner",
        ),
        (
            429,
            errors({"code": "TOOMANYREQUESTS", "message": "retry-after: 1.16ms"}),
            "(TOOMANYREQUESTS: retry-after: 1.16ms)",
        ),
        (406, errors({"status": 406, "message": "Not Acceptable"}), "(Not Acceptable)"),
        (422, errors({"code": "DENIED", "message": None}), "(DENIED)"),
        (422, errors({"code": "A", "message": "b"}, {"code": "C"}), "(A: b)"),
        (422, errors({"code": "A", "message": "x\ny\x1b[2J\u202ez"}), "(A: x?y?[2J?z)"),
        (422, errors({"code": "A", "message": "b" * 999}), "(A: " + "b" * 197 + ")"),
        (
            422,
            errors({"code": "A", "message": "see https://h.test/x?token=hidden for more"}),
            "(A: see https://h.test/x for more)",
        ),
    ],
)
def test_the_reason_of_the_registry_is_in_the_line(status: int, body: bytes, expected: str) -> None:
    line = line_of(Answer(status, {}, body))
    assert expected in line
    assert line.isprintable()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>413</html>",
        b"[]",
        b"7",
        b"null",
        b"[" * 100_000,
        b"\xff\xfe",
        errors(),
        errors("text"),
        errors({"code": 7, "message": ["x"]}),
        b'{"errors": {}}',
        b'{"errors": null}',
    ],
)
def test_a_refusal_without_a_reason_says_where_to_look(body: bytes) -> None:
    line = line_of(Answer(422, {}, body))
    assert "answer 422 to POST /v2/a/b/blobs/uploads/; check its address" in line


@pytest.mark.parametrize(
    ("status", "body"),
    [
        # Quay without FEATURE_GENERAL_OCI_SUPPORT, and with an artifact: oras 738
        (400, errors({"code": "MANIFEST_INVALID", "message": "manifest invalid"})),
        (415, b""),
        (405, errors({"code": "UNSUPPORTED", "message": "The operation is unsupported."})),
    ],
)
def test_a_registry_that_takes_no_such_manifest_is_named(status: int, body: bytes) -> None:
    def answer_all(method: str, path: str) -> Answer:
        is_manifest = method == "PUT" and "/manifests/" in path
        return Answer(status, {}, body) if is_manifest else healthy(method, path)

    with fake_server(answer_all) as server, pytest.raises(FailureError) as caught:
        Registry(server.url, "a/b").push_manifest(MANIFEST, "1.0.0")
    assert f"refuses a manifest of the type {MANIFEST_TYPE} (" in str(caught.value)


def test_a_tag_that_cannot_move_is_no_matter_of_types() -> None:
    """Amazon's, where tags are immutable."""
    said = errors({"code": "TAG_INVALID", "message": "the tag is immutable"})
    with (
        fake_server(lambda method, path: Answer(400, {}, said)) as server,
        pytest.raises(FailureError, match=r"answer 400 to PUT .*\(TAG_INVALID: the tag is imm"),
    ):
        Registry(server.url, "a/b").push_manifest(MANIFEST, "1.0.0")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            401,
            errors({"code": "UNAUTHORIZED", "message": "visit https://aka.ms/acr/authorization"}),
            f"of {USER} (UNAUTHORIZED: visit https://aka.ms/acr/authorization); run `docker",
        ),
        (401, errors({"code": "A", "message": f"not {PASSWORD}"}), "(A: not …)"),
        (403, b'{"error": "invalid_grant", "error_description": "expired"}', "(invalid_grant: exp"),
    ],
)
def test_the_reason_of_a_token_server_is_in_the_line(
    tmp_path: Path, status: int, body: bytes, expected: str
) -> None:
    def answer_all(method: str, path: str) -> Answer:
        if path.startswith("/token"):
            return Answer(status, {}, body)
        realm = f'Bearer realm="{server.url}/token",service="s"'
        return Answer(401, {"WWW-Authenticate": realm})

    with fake_server(answer_all) as server:
        docker_config(tmp_path / "docker", server.host, USER, PASSWORD)
        with pytest.raises(FailureError) as caught:
            Registry(server.url, "a/b").manifest("1.0.0")
    assert expected in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_a_busy_token_server_is_asked_again() -> None:
    busy = [Answer(503), Answer(429, {"Retry-After": "0"})]

    def answer_all(method: str, path: str) -> Answer:
        if path.startswith("/token"):
            return busy.pop() if busy else Answer(200, {}, b'{"token": "t0ken"}')
        if server.seen[-1].authorization:
            return Answer(404)
        return Answer(401, {"WWW-Authenticate": f'Bearer realm="{server.url}/token",service="s"'})

    with fake_server(answer_all) as server:
        assert Registry(server.url, "a/b").manifest("1.0.0") is None


def test_pauses_double_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry has about a quarter of a minute to come back."""
    monkeypatch.undo()
    pauses: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", pauses.append)
    with fake_server(lambda method, path: Answer(503)) as server, pytest.raises(FailureError):
        Registry(server.url, "a/b").manifest("1.0.0")
    longest = [0.5, 1.0, 2.0, 4.0, 8.0]
    assert len(pauses) == len(longest)
    for pause, most in zip(pauses, longest, strict=True):
        assert most / 2 <= pause <= most


def test_a_mount_that_did_not_happen_is_an_upload() -> None:
    """201 to a mount, and then the blob is not there."""

    def answer_all(method: str, path: str) -> Answer:
        return Answer(201) if "mount=" in path else healthy(method, path)

    with fake_server(answer_all) as server:
        Registry(server.url, "a/b").push_blob(BLOB, no_progress)
    assert server.seen[-1].method == "PUT"
    assert server.seen[-1].body == b"some weights"


def test_a_mount_that_happened_is_all() -> None:
    def answer_all(method: str, path: str) -> Answer:
        is_mounted = any("mount=" in request.path for request in server.seen)
        return Answer(200 if method == "HEAD" else 201) if is_mounted else Answer(404)

    with fake_server(answer_all) as server:
        blob = bytes_blob(b"", "x/y")  # as long as the answers to HEAD say
        Registry(server.url, "a/b").push_blob(blob, no_progress)
    assert [request.method for request in server.seen] == ["HEAD", "POST", "HEAD"]


def test_an_upload_that_is_forgotten_in_its_middle_begins_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(part_sizes, "PART_SIZES", (4,))
    monkeypatch.setattr(part_sizes, "FIRST_PART_BYTES", 4)
    forgotten = [Answer(404, {}, errors({"code": "BLOB_UPLOAD_UNKNOWN", "message": "x"}))]

    def answer_all(method: str, path: str) -> Answer:
        if method == "HEAD":
            is_whole = any(request.method == "PUT" for request in server.seen)
            return Answer(200, {"Content-Length": "12"}) if is_whole else Answer(404)
        if method == "PATCH":
            is_second = [request.method for request in server.seen[-2:]] == ["PATCH", "PATCH"]
            return forgotten.pop() if is_second and forgotten else Answer(202)
        return healthy(method, path)

    with fake_server(answer_all) as server:
        Registry(server.url, "a/b").push_blob(BLOB, no_progress)
    sent = [request.body for request in server.seen if request.method == "PATCH"]
    assert sent == [b"some", b" wei", b"some", b" wei", b"ghts"]


@pytest.mark.parametrize("status", [400, 404, 405, 406, 501])
def test_a_registry_may_not_know_referrers(status: int) -> None:
    """The list is then under the tag that the specification reserves for it."""
    with fake_server(lambda method, path: Answer(status)) as server:
        assert Registry(server.url, "a/b").referrers("sha256:" + "0" * 64) is None
