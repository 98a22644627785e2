"""The registry client against servers that are wrong, hostile or silent about what they have."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core.errors import FailureError, InputError
from pipeline.core.file_records import Digest
from pipeline.oci.blob import Blob, no_progress
from pipeline.oci.docker_credentials import Credentials
from pipeline.oci.http import RegistryHttp
from pipeline.oci.records import MANIFEST_TYPE, Descriptor
from pipeline.oci.registry import Registry
from tests.oci.fake_server import Answer, fake_server, healthy
from tests.registry_server import PASSWORD, USER, docker_config

DATA = b"some weights"
DIGEST = Digest.of(DATA)
BLOB = Blob(Descriptor(media_type="text/plain", digest=DIGEST, size=len(DATA)), DATA)
MANIFEST = Blob(Descriptor(media_type=MANIFEST_TYPE, digest=DIGEST, size=len(DATA)), DATA)


def test_a_blob_is_sent_once_under_its_digest() -> None:
    with fake_server(healthy) as server:
        Registry(server.url, "a/b").push_blob(BLOB, no_progress)
    assert [(request.method, request.path.split("?")[0]) for request in server.seen] == [
        ("HEAD", f"/v2/a/b/blobs/{DIGEST}"),
        ("POST", "/v2/a/b/blobs/uploads/"),
        ("PUT", "/v2/upload/1"),
    ]
    assert server.seen[-1].path == f"/v2/upload/1?_state=secret&digest={DIGEST}"
    assert server.seen[-1].body == DATA


def test_a_blob_that_is_there_is_not_sent() -> None:
    with fake_server(
        lambda method, path: Answer(200, {"Content-Length": str(len(DATA))})
    ) as server:
        Registry(server.url, "a/b").push_blob(BLOB, no_progress)
    assert [request.method for request in server.seen] == ["HEAD"]


def put(answer: Answer) -> Callable[[str, str], Answer]:
    return lambda method, path: answer if method == "PUT" else healthy(method, path)


def post(answer: Answer) -> Callable[[str, str], Answer]:
    return lambda method, path: answer if method == "POST" else healthy(method, path)


WRONG_DIGEST = {"Docker-Content-Digest": "sha256:" + "0" * 64}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (post(Answer(202)), "answers the location ''"),
        (post(Answer(202, {"Location": "file:///etc/passwd"})), "answers the location 'file:"),
        (post(Answer(202, {"Location": "http://[oops"})), "answers the location 'http://"),
        (post(Answer(307, {"Location": "http://evil.test/x"})), "sends POST on to evil.test"),
        (post(Answer(200, {}, b"<html>")), "answer 200 to POST"),
        (post(Answer(403)), "an anonymous user has no permission for a/b"),
        (post(Answer(503)), "answer 503 to POST /v2/a/b/blobs/uploads/; .*later"),
        (post(Answer(401)), "with the login scheme ''"),
        (post(Answer(401, {"WWW-Authenticate": "Basic"})), "wants a login and there is none"),
        (post(Answer(401, {"WWW-Authenticate": 'Bearer realm="ftp://x"'})), "token server 'ftp:"),
        (put(Answer(201, WRONG_DIGEST)), "answers the digest"),
        (put(Answer(400)), "answer 400 to PUT /v2/upload/1;"),
        (lambda method, path: Answer(200, {"Content-Length": "5"}), "the size 5 for a blob of 12"),
        (lambda method, path: Answer(307, {"Location": "/again"}), "more than 5 redirects"),
    ],
)
def test_a_wrong_answer_is_one_line(answer: Callable[[str, str], Answer], expected: str) -> None:
    with fake_server(answer) as server, pytest.raises(FailureError, match=expected) as caught:
        Registry(server.url, "a/b").push_blob(BLOB, no_progress)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_web_page_is_no_manifest() -> None:
    page = Answer(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>")
    with (
        fake_server(lambda method, path: page) as server,
        pytest.raises(FailureError, match="answers text/html for a manifest"),
    ):
        Registry(server.url, "a/b").manifest("tag")


def test_an_endless_manifest_is_refused() -> None:
    long = Answer(200, {"Content-Type": MANIFEST_TYPE}, b" " * (5 << 20))
    with (
        fake_server(lambda method, path: long) as server,
        pytest.raises(FailureError, match="answers more than 4 MiB"),
    ):
        Registry(server.url, "a/b").manifest("tag")


def test_a_tag_that_does_not_appear_after_its_push_is_reported() -> None:
    other = Answer(200, {"Content-Type": MANIFEST_TYPE}, b"{}")
    with (
        fake_server(
            lambda method, path: other if method == "GET" else healthy(method, path)
        ) as server,
        pytest.raises(FailureError, match="another manifest under tag than the one it was sent"),
    ):
        Registry(server.url, "a/b").push_manifest(MANIFEST, "tag")


def test_a_broken_connection_is_one_line() -> None:
    def short(method: str, path: str) -> Answer:
        return Answer(200, {"Content-Type": MANIFEST_TYPE, "Content-Length": "99"}, b"{")

    with (
        fake_server(short) as server,
        pytest.raises(FailureError, match="cannot be reached: the connection broke"),
    ):
        Registry(server.url, "a/b").manifest("tag")


def test_an_impossible_url_is_refused() -> None:
    with pytest.raises(InputError, match="expected a URL such as"):
        Registry("http://[half", "a/b")


def test_credentials_follow_neither_an_upload_location_nor_a_redirect(tmp_path: Path) -> None:
    """Basic credentials reach the registry, and only the registry."""
    with fake_server(lambda method, path: healthy(method, path)) as other:

        def guarded(method: str, path: str) -> Answer:
            if not server.seen[-1].authorization:
                return Answer(401, {"WWW-Authenticate": 'Basic realm="x"'})
            location = {"Location": f"{other.url}/elsewhere"}
            return Answer(307, location) if method == "HEAD" else Answer(202, location)

        with fake_server(guarded) as server:
            docker_config(tmp_path / "docker", server.host, USER, PASSWORD)
            Registry(server.url, "a/b").push_blob(BLOB, no_progress)
    assert any(request.authorization for request in server.seen)
    assert [(request.method, request.authorization) for request in other.seen] == [
        ("HEAD", None),
        ("PUT", None),
    ]


def test_netrc_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with fake_server(healthy) as server:
        Registry(server.url, "a/b").push_blob(BLOB, no_progress)
    assert [request.authorization for request in server.seen] == [None, None, None]


def test_a_password_is_not_sent_without_tls() -> None:
    http = RegistryHttp("http://registry.test", "a/b", Credentials("user", "password"))
    with fake_server(
        lambda method, path: Answer(401, {"WWW-Authenticate": 'Basic realm="x"'})
    ) as proxy:
        http._session.proxies = {"http": proxy.url}  # stands for the network in between
        with pytest.raises(InputError, match="a password is not sent without TLS"):
            http.send("GET", http.url("manifests/tag"), expect=(200,))
    assert [request.authorization for request in proxy.seen] == [None]
