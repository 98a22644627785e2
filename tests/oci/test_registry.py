"""The registry client against servers that are wrong, hostile or ask for a login."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from pipeline.core.errors import FailureError, InputError, QuantlineError
from pipeline.core.file_records import Digest
from pipeline.oci import retry as registry_retry
from pipeline.oci.blob import Blob, no_progress
from pipeline.oci.docker_credentials import Credentials, credentials_for
from pipeline.oci.http import RegistryHttp
from pipeline.oci.records import MANIFEST_TYPE, Descriptor
from pipeline.oci.registry import Registry
from tests.registry_server import PASSWORD, USER, docker_config, registry_server
from tests.support import STOP_POLL_S

DATA = b"some weights"
DIGEST = Digest.of(DATA)
BLOB = Blob(Descriptor(media_type="text/plain", digest=DIGEST, size=len(DATA)), DATA)
MANIFEST = Blob(Descriptor(media_type=MANIFEST_TYPE, digest=DIGEST, size=len(DATA)), DATA)


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

        do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(STOP_POLL_S,))
    thread.start()
    try:
        yield FakeServer(f"127.0.0.1:{server.server_port}", seen)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def healthy(method: str, path: str) -> Answer:
    """A registry that has nothing and takes everything."""
    if method in ("HEAD", "GET"):
        return Answer(404)
    if method == "POST":
        return Answer(202, {"Location": "/v2/upload/1?_state=secret"})
    return Answer(201)


def login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    docker_config(tmp_path / "docker", host, USER, PASSWORD)


@pytest.fixture(autouse=True)
def no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(registry_retry, "PAUSES_S", (0.0, 0.0))


def test_a_blob_is_sent_once_under_its_digest() -> None:
    with fake_server(healthy) as server:
        Registry(server.url, "a/b").push_blob(BLOB, no_progress)
    assert [(it.method, it.path.split("?")[0]) for it in server.seen] == [
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
    assert [it.method for it in server.seen] == ["HEAD"]


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
        fake_server(lambda method, path: other if method == "GET" else healthy(method, path)) as it,
        pytest.raises(FailureError, match="another manifest under tag than the one it was sent"),
    ):
        Registry(it.url, "a/b").push_manifest(MANIFEST, "tag")


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


def test_credentials_follow_neither_an_upload_location_nor_a_redirect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Basic credentials reach the registry, and only the registry."""
    with fake_server(lambda method, path: healthy(method, path)) as other:

        def guarded(method: str, path: str) -> Answer:
            if not server.seen[-1].authorization:
                return Answer(401, {"WWW-Authenticate": 'Basic realm="x"'})
            location = {"Location": f"{other.url}/elsewhere"}
            return Answer(307, location) if method == "HEAD" else Answer(202, location)

        with fake_server(guarded) as server:
            login(tmp_path, monkeypatch, server.host)
            Registry(server.url, "a/b").push_blob(BLOB, no_progress)
    assert any(it.authorization for it in server.seen)
    assert [(it.method, it.authorization) for it in other.seen] == [("HEAD", None), ("PUT", None)]


def test_netrc_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with fake_server(healthy) as server:
        Registry(server.url, "a/b").push_blob(BLOB, no_progress)
    assert [it.authorization for it in server.seen] == [None, None, None]


def test_a_password_is_not_sent_without_tls() -> None:
    http = RegistryHttp("http://registry.test", "a/b", Credentials("user", "password"))
    with fake_server(
        lambda method, path: Answer(401, {"WWW-Authenticate": 'Basic realm="x"'})
    ) as proxy:
        http._session.proxies = {"http": proxy.url}  # stands for the network in between
        with pytest.raises(InputError, match="a password is not sent without TLS"):
            http.send("GET", http.url("manifests/tag"), expect=(200,))
    assert [it.authorization for it in proxy.seen] == [None]


def token_server(method: str, path: str) -> Answer:
    return Answer(
        200, {"Content-Type": "application/json"}, json.dumps({"token": "t0ken"}).encode()
    )


def test_a_token_is_fetched_with_the_login_and_sent_to_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's registry with its `silly` scheme: it wants a token and does not look at it."""
    with fake_server(token_server) as tokens:
        auth = f"auth: {{silly: {{realm: '{tokens.url}/token', service: test}}}}"
        with registry_server(tmp_path / "registry", auth=auth) as server:
            login(tmp_path, monkeypatch, server.host)
            registry = Registry(server.url, "a/b")
            registry.push_blob(BLOB, no_progress)
            assert registry.manifest("tag") is None
    assert tokens.seen
    assert all((it.authorization or "").startswith("Basic ") for it in tokens.seen)
    assert "service=test" in tokens.seen[0].path
    assert "scope=repository%3Aa%2Fb" in tokens.seen[0].path


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(401), f"refuses the login of {USER}"),
        (Answer(200, {}, b"no json"), "answers something else than a token"),
        (Answer(200, {}, b"[]"), "answers something else than a token"),
        (Answer(200, {}, b'{"token": 7}'), "answers something else than a token"),
        (Answer(200, {}, b'{"token": "a\\nb"}'), "answers something else than a token"),
        (Answer(302, {"Location": "http://evil.test"}), "answers something else than a token"),
    ],
)
def test_a_wrong_token_server_is_one_line(
    answer: Answer, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_server(lambda method, path: answer) as tokens:
        challenge = {"WWW-Authenticate": f'Bearer realm="{tokens.url}/token",service="s"'}
        with fake_server(lambda method, path: Answer(401, challenge)) as server:
            login(tmp_path, monkeypatch, server.host)
            with pytest.raises(QuantlineError, match=expected) as caught:
                Registry(server.url, "a/b").push_blob(BLOB, no_progress)
    assert PASSWORD not in str(caught.value)


def write_config(tmp_path: Path, config: object) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text(json.dumps(config))


ENCODED = "dXNlcjpwYXNz"  # user:pass


@pytest.mark.parametrize(
    "server", ["reg.test:5000", "https://reg.test:5000", "https://reg.test:5000/v1/"]
)
def test_a_login_is_found_however_its_server_is_written(tmp_path: Path, server: str) -> None:
    write_config(tmp_path, {"auths": {server: {"auth": ENCODED}}, "psFormat": "x"})
    assert credentials_for("reg.test:5000") == Credentials("user", "pass")
    assert credentials_for("reg.test") is None


def test_the_hub_login_has_its_own_name(tmp_path: Path) -> None:
    write_config(tmp_path, {"auths": {"https://index.docker.io/v1/": {"auth": ENCODED}}})
    assert credentials_for("registry-1.docker.io") == Credentials("user", "pass")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ([], "cannot be read as Docker's configuration"),
        ({"auths": 3}, "cannot be read as Docker's configuration"),
        ({"auths": {"r": {"auth": "!"}}}, "the login for r is damaged"),
        ({"auths": {"r": {"auth": "dXNlcg=="}}}, "the login for r is damaged"),
        ({"auths": {"r": 3}}, "the login for r is damaged"),
        ({"credHelpers": 3}, "cannot be read as Docker's configuration"),
        ({"auths": {"r": {}}, "credsStore": "absent"}, "docker-credential-absent: no such program"),
        ({"credHelpers": {"r": "absent"}}, "docker-credential-absent: no such program"),
        ({"credHelpers": {"r": "../../bin/sh"}}, "sh: no such program"),
    ],
)
def test_a_login_that_cannot_be_read_is_one_line(
    tmp_path: Path, config: object, expected: str
) -> None:
    write_config(tmp_path, config)
    with pytest.raises(InputError, match=expected):
        credentials_for("r")


def test_a_file_that_is_no_json_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text("no json")
    with pytest.raises(InputError, match="cannot be read as Docker's configuration"):
        credentials_for("r")


def test_a_damaged_login_of_another_server_does_not_matter(tmp_path: Path) -> None:
    write_config(tmp_path, {"auths": {"other": {"auth": "!"}, "r": {"auth": ENCODED}}})
    assert credentials_for("r") == Credentials("user", "pass")


def test_only_the_named_directory_is_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / ".docker").mkdir(parents=True)
    config = json.dumps({"auths": {"r": {"auth": ENCODED}}})
    (tmp_path / "home" / ".docker" / "config.json").write_text(config)
    assert credentials_for("r") is None
    monkeypatch.delenv("DOCKER_CONFIG")
    assert credentials_for("r") == Credentials("user", "pass")


def test_a_password_does_not_show_in_a_repr() -> None:
    assert "pass" not in repr(Credentials("user", "pass"))


IDENTITY_TOKEN = "identity-t0ken"


def test_an_identity_token_is_exchanged_for_a_token_of_the_registry(tmp_path: Path) -> None:
    """Debian's registry with its `silly` scheme: it wants a token and does not look at it."""
    with fake_server(token_server) as tokens:
        auth = f"auth: {{silly: {{realm: '{tokens.url}/token', service: test}}}}"
        with registry_server(tmp_path / "registry", auth=auth) as server:
            write_config(tmp_path, {"auths": {server.host: {"identitytoken": IDENTITY_TOKEN}}})
            assert Registry(server.url, "a/b").manifest("tag") is None
    (asked,) = tokens.seen
    assert (asked.method, asked.path, asked.authorization) == ("POST", "/token", None)
    assert parse_qs(asked.body.decode()) == {
        "grant_type": ["refresh_token"],
        "refresh_token": [IDENTITY_TOKEN],
        "client_id": ["quantline"],
        "service": ["test"],
        "scope": ["repository:a/b:pull"],
    }


@pytest.mark.parametrize("status", [400, 401])
def test_a_refused_identity_token_is_one_line_without_it(tmp_path: Path, status: int) -> None:
    with fake_server(lambda method, path: Answer(status)) as tokens:
        challenge = {"WWW-Authenticate": f'Bearer realm="{tokens.url}/token",service="s"'}
        with fake_server(lambda method, path: Answer(401, challenge)) as server:
            write_config(tmp_path, {"auths": {server.host: {"identitytoken": IDENTITY_TOKEN}}})
            with pytest.raises(FailureError, match="refuses the login of an identity") as caught:
                Registry(server.url, "a/b").manifest("tag")
    assert IDENTITY_TOKEN not in str(caught.value)


def test_an_identity_token_is_no_password(tmp_path: Path) -> None:
    challenge = {"WWW-Authenticate": 'Basic realm="x"'}
    with fake_server(lambda method, path: Answer(401, challenge)) as server:
        write_config(tmp_path, {"auths": {server.host: {"identitytoken": IDENTITY_TOKEN}}})
        with pytest.raises(InputError, match="wants a password, and its login is an identity"):
            Registry(server.url, "a/b").manifest("tag")
    assert [it.authorization for it in server.seen] == [None]


def test_an_identity_token_is_not_sent_without_tls() -> None:
    challenge = {"WWW-Authenticate": 'Bearer realm="http://tokens.test/token",service="s"'}
    token = Credentials("an identity token", IDENTITY_TOKEN, is_identity_token=True)
    http = RegistryHttp("http://registry.test", "a/b", token)
    with fake_server(lambda method, path: Answer(401, challenge)) as proxy:
        http._session.proxies = {"http": proxy.url}  # stands for the network in between
        with pytest.raises(InputError, match="a password is not sent without TLS"):
            http.send("GET", http.url("manifests/tag"), expect=(200,))
    assert [it.body for it in proxy.seen] == [b""]
