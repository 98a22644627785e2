"""What a registry client says of TLS that fails: a line of its own for each kind, with a remedy."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from pipeline.core.errors import QuantlineError
from pipeline.core.process import Daemon, free_port
from pipeline.oci import retry as registry_retry
from pipeline.oci.registry import Registry
from tests.registry_server import registry_server
from tests.support import answering, require_program

pytestmark = pytest.mark.usefixtures("own_settings")
NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_retry, "PAUSES_S", ())
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)


def certificate(
    directory: Path,
    *,
    address: str = "127.0.0.1",
    since: datetime = NOW - DAY,
    until: datetime = NOW + DAY,
) -> Path:
    """A certificate that is its own authority, with its key, in one file of PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "registry")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(since)
        .not_valid_after(until)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    path = directory / "certificate.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + made.public_bytes(Encoding.PEM))
    return path


@contextmanager
def tls_server(path: Path, *, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> Iterator[str]:
    """The URL of a server with this certificate that answers 404 to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a handshake that failed on purpose

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    if newest < ssl.TLSVersion.TLSv1_2:
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version = newest
    context.maximum_version = newest
    server = Quiet(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    with answering(server) as host:
        yield f"https://{host}"


def problem(url: str) -> str:
    with pytest.raises(QuantlineError) as caught:
        Registry(url, "a/b").manifest("tag")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_trusted_certificate_is_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    with tls_server(path) as url:
        assert Registry(url, "a/b").manifest("tag") is None


def test_an_unknown_authority(tmp_path: Path) -> None:
    with tls_server(certificate(tmp_path)) as url:
        assert "not trusted (REQUESTS_CA_BUNDLE names your own authority)" in problem(url)


@pytest.mark.parametrize(
    ("validity", "expected"),
    [
        ({"since": NOW - 2 * DAY, "until": NOW - DAY}, "its TLS certificate has expired"),
        ({"since": NOW + DAY, "until": NOW + 2 * DAY}, "not valid yet; compare the clocks"),
        ({"address": "127.0.0.2"}, "its TLS certificate is for another name"),
    ],
)
def test_a_trusted_authority_and_a_wrong_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validity: dict, expected: str
) -> None:
    path = certificate(tmp_path, **validity)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    with tls_server(path) as url:
        said = problem(url)
    assert expected in said
    assert "not trusted" not in said


def test_https_to_a_plain_port(tmp_path: Path) -> None:
    with registry_server(tmp_path / "registry") as server:
        said = problem(f"https://{server.host}")
    assert f"does not speak TLS on that port (http://{server.host}, if that is meant)" in said


def test_http_to_a_port_with_tls(tmp_path: Path) -> None:
    with registry_server(tmp_path / "registry", tls=True) as server:
        assert f"https://{server.host}, if it speaks TLS" in problem(f"http://{server.host}")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
def test_a_server_that_is_too_old(tmp_path: Path) -> None:
    with tls_server(certificate(tmp_path), newest=ssl.TLSVersion.TLSv1_1) as url:
        assert "no version or cipher of TLS that this machine accepts" in problem(url)


def test_a_server_that_wants_a_certificate_of_its_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, port = certificate(tmp_path), free_port()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    command = [require_program("openssl"), "s_server", "-accept", f"127.0.0.1:{port}", "-www"]
    asks = ["-cert", path, "-key", path, "-Verify", "1", "-verify_return_error"]
    with Daemon([*command, *asks], log_path=tmp_path / "log", environment={}) as server:
        server.wait_until(
            lambda: "ACCEPT" in (tmp_path / "log").read_text(), timeout_s=30, what="openssl"
        )
        assert "wants a TLS certificate of its clients" in problem(f"https://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("content", "expected"), [(None, "no such file"), ("no PEM", "expected certificates in PEM")]
)
def test_a_bundle_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, expected: str
) -> None:
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_text(content)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    with tls_server(certificate(tmp_path)) as url:
        said = problem(url)
    assert f"REQUESTS_CA_BUNDLE = {bundle}: " in said
    assert expected in said


def test_a_server_that_hangs_up_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It closes the first connection in the middle of the handshake."""
    monkeypatch.setattr(registry_retry, "PAUSES_S", (0.0,))
    path = certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    with tls_server(path) as url, socket.create_server(("127.0.0.1", 0)) as front:
        target = int(url.rpartition(":")[2])

        def serve() -> None:
            first, _ = front.accept()
            first.recv(1 << 16)  # all of it: closing then says that it ends, not that it broke
            first.close()
            second, _ = front.accept()
            with second, socket.create_connection(("127.0.0.1", target)) as there:
                back = threading.Thread(target=copy, args=(there, second))
                back.start()
                copy(second, there)
                back.join()

        def copy(source: socket.socket, sink: socket.socket) -> None:
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        host = f"https://127.0.0.1:{front.getsockname()[1]}"
        assert Registry(host, "a/b").manifest("tag") is None
