"""Logins: where they come from, and how a registry and its token server take them."""

import json
import time
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from pipeline.core.errors import FailureError, InputError, QuantlineError
from pipeline.oci import docker_credentials
from pipeline.oci.blob import bytes_blob, no_progress
from pipeline.oci.docker_credentials import Credentials, credentials_for
from pipeline.oci.http import RegistryHttp
from pipeline.oci.registry import Registry
from tests.oci.fake_server import Answer, fake_server, token_server
from tests.registry_server import PASSWORD, USER, docker_config, registry_server

BLOB = bytes_blob(b"some weights", "text/plain")


def test_a_token_is_fetched_with_the_login_and_sent_to_the_registry(tmp_path: Path) -> None:
    """Debian's registry with its `silly` scheme: it wants a token and does not look at it."""
    with fake_server(token_server) as tokens:
        auth = f"auth: {{silly: {{realm: '{tokens.url}/token', service: test}}}}"
        with registry_server(tmp_path / "registry", auth=auth) as server:
            docker_config(tmp_path / "docker", server.host, USER, PASSWORD)
            registry = Registry(server.url, "a/b")
            registry.push_blob(BLOB, no_progress)
            assert registry.manifest("tag") is None
    assert tokens.seen
    assert all((request.authorization or "").startswith("Basic ") for request in tokens.seen)
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
def test_a_wrong_token_server_is_one_line(answer: Answer, expected: str, tmp_path: Path) -> None:
    with fake_server(lambda method, path: answer) as tokens:
        challenge = {"WWW-Authenticate": f'Bearer realm="{tokens.url}/token",service="s"'}
        with fake_server(lambda method, path: Answer(401, challenge)) as server:
            docker_config(tmp_path / "docker", server.host, USER, PASSWORD)
            with pytest.raises(QuantlineError, match=expected) as caught:
                Registry(server.url, "a/b").push_blob(BLOB, no_progress)
    assert PASSWORD not in str(caught.value)


def write_config(tmp_path: Path, config: object) -> None:
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text(json.dumps(config))


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
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text("no json")
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
    assert [request.authorization for request in server.seen] == [None]


def test_an_identity_token_is_not_sent_without_tls() -> None:
    challenge = {"WWW-Authenticate": 'Bearer realm="http://tokens.test/token",service="s"'}
    token = Credentials("an identity token", IDENTITY_TOKEN, is_identity_token=True)
    http = RegistryHttp("http://registry.test", "a/b", token)
    with fake_server(lambda method, path: Answer(401, challenge)) as proxy:
        http._session.proxies = {"http": proxy.url}  # stands for the network in between
        with pytest.raises(InputError, match="a password is not sent without TLS"):
            http.send("GET", http.url("manifests/tag"), expect=(200,))
    assert [request.body for request in proxy.seen] == [b""]


def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """`docker-credential-test`, which is asked for the login of every server."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "docker-credential-test"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))


ANSWER = """read server
[ "$1" = get ] && printf '{"Username":"u","Secret":"%s"}' "secret of $server"
"""


@pytest.mark.parametrize(
    ("config", "server"),
    [
        ({"credsStore": "test"}, "reg.test:5000"),
        ({"credHelpers": {"reg.test:5000": "test"}, "credsStore": "other"}, "reg.test:5000"),
        ({"auths": {"https://reg.test:5000/v1/": {}}, "credsStore": "test"},
         "https://reg.test:5000/v1/"),
    ],
)  # fmt: skip
def test_a_helper_is_asked_for_the_server_as_it_is_spelt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: object, server: str
) -> None:
    helper(tmp_path, monkeypatch, ANSWER)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert credentials_for("reg.test:5000") == Credentials("u", f"secret of {server}")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo no json", "its answer for reg.test is no login"),
        ("printf '{}'", "its answer for reg.test is no login"),
        ("echo hunter2; exit 1", "docker-credential-test: fails for reg.test"),
    ],
)
def test_a_helper_that_fails_or_answers_nonsense_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: str
) -> None:
    helper(tmp_path, monkeypatch, script)
    (tmp_path / "config.json").write_text('{"credsStore": "test"}')
    with pytest.raises(InputError, match=expected) as caught:
        credentials_for("reg.test")
    assert "hunter2" not in str(caught.value)


def test_a_helper_may_keep_an_identity_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(tmp_path, monkeypatch, 'printf \'{"Username":"<token>","Secret":"x"}\'')
    (tmp_path / "config.json").write_text('{"credsStore": "test"}')
    found = credentials_for("reg.test")
    assert found is not None
    assert (found.password, found.is_identity_token) == ("x", True)


def test_a_helper_without_a_login_is_no_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(tmp_path, monkeypatch, "echo credentials not found in native keychain; exit 1")
    (tmp_path / "config.json").write_text('{"credsStore": "test"}')
    assert credentials_for("reg.test") is None


def test_a_helper_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_credentials, "HELPER_TIMEOUT_S", 0.2)
    helper(tmp_path, monkeypatch, "exec sleep 30")
    (tmp_path / "config.json").write_text('{"credsStore": "test"}')
    began = time.monotonic()
    with pytest.raises(FailureError, match=r"-test: no answer within 0\.2 s; see what"):
        credentials_for("reg.test")
    assert time.monotonic() - began < 20
