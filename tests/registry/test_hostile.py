"""Registries and archives that lie, each refused in one line with nothing outside the target.

Every case is a whole release with one thing wrong, pulled or imported over the command line.
"""

import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.core.file_records import Digest
from pipeline.core.files import directory_records
from pipeline.core.workspace import Workspace
from pipeline.oci import retry as registry_retry
from pipeline.stages import publish
from tests.registry_server import PASSWORD, USER, docker_config, release_params, write_packages
from tests.support import STOP_POLL_S

TAG = "1.2.3-awq-w4-g128"
NAME = "org.cncf.model.filepath"
TITLE = "org.opencontainers.image.title"
Json = dict[str, Any]


@dataclass
class Stored:
    """A release as plain values, to be damaged; `blobs` by digest."""

    manifest: Json
    blobs: dict[str, bytes]

    def layer(self, name: str = "model.safetensors") -> Json:
        return next(it for it in self.manifest["layers"] if it["annotations"][NAME] == name)

    def rename(self, name: str, *, layer: str = "model.safetensors") -> None:
        self.layer(layer)["annotations"] = {NAME: name, TITLE: name}

    def replace_blob(self, descriptor: Json, data: bytes) -> None:
        """Other bytes under a digest of their own."""
        self.blobs[Digest.of(data)] = data
        descriptor.update(digest=Digest.of(data), size=len(data))


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stored:
    """A published release; the workspace around it is the current directory."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(registry_retry, "PAUSES_S", (0.0, 0.0))
    workspace = Workspace(tmp_path / "workspace")
    write_packages(workspace, "awq-w4-g128")
    publish.run(workspace, release_params())
    monkeypatch.chdir(workspace.root)
    blobs = {
        f"sha256:{path.name}": path.read_bytes()
        for path in (workspace.registry_dir / "blobs" / "sha256").iterdir()
    }
    index = json.loads((workspace.registry_dir / "index.json").read_bytes())
    (entry,) = [
        it
        for it in index["manifests"]
        if it["annotations"]["org.opencontainers.image.ref.name"] == TAG
    ]
    return Stored(json.loads(blobs[entry["digest"]]), blobs)


def everything_below(directory: Path) -> set[Path]:
    return {path for path in directory.rglob("*") if "pytest" not in path.name}


@dataclass
class Liar:
    """A registry that serves a release; `headers` and `bodies` override its answers by path end."""

    release: Stored
    manifest: bytes
    manifest_type: str = "application/vnd.oci.image.manifest.v1+json"
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    seen: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def serving(liar: Liar) -> Iterator[str]:
    """The `host:port` that a liar answers at."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            liar.seen.append((self.path, self.headers.get("Authorization")))
            name = self.path.rsplit("/", 1)[1]
            is_manifest = "/manifests/" in self.path
            body = liar.manifest if is_manifest else liar.release.blobs.get(name)
            body = liar.bodies.get(name, body)
            status = liar.statuses.get(name, 200 if body is not None else 404)
            if is_manifest and name.startswith("sha256-"):
                status = 404
            self.send_response(status)
            headers = {"Content-Length": str(len(body or b""))}
            if is_manifest:
                headers["Content-Type"] = liar.manifest_type
            for key, value in (headers | liar.headers.get(name, {})).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(STOP_POLL_S,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pull_from(liar: Liar, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a pull of the liar's release is refused."""
    (tmp_path / "target").mkdir()
    before = everything_below(tmp_path)
    with serving(liar) as host:
        ref = f"{host}/a/b:{TAG}"
        target = tmp_path / "target" / "pulled"
        code = main(["pull", ref, "--to", "dir", "--into", str(target)])
    lines = [it for it in capsys.readouterr().err.splitlines() if it.startswith("quantline pull")]
    assert code in (1, 2)
    assert len(lines) == 1
    assert not target.exists()
    written = everything_below(tmp_path) - before
    assert all(path.is_relative_to(tmp_path / "target") for path in written), written
    return lines[0]


def liar_of(release: Stored) -> Liar:
    return Liar(release, json.dumps(release.manifest).encode())


def other_package(release: Stored, **changes: object) -> None:
    """Another manifest.json with digests of its own, in the layers and in the config."""
    layer = release.layer("manifest.json")
    package = json.loads(release.blobs[layer["digest"]]) | changes
    release.replace_blob(layer, json.dumps(package).encode())
    new_config(release)


def new_config(release: Stored) -> None:
    config = json.loads(release.blobs[release.manifest["config"]["digest"]])
    config["modelfs"]["diffIds"] = [layer["digest"] for layer in release.manifest["layers"]]
    release.replace_blob(release.manifest["config"], json.dumps(config).encode())


def duplicate_layer(release: Stored) -> None:
    release.manifest["layers"].append(release.layer())


def giant(release: Stored) -> None:
    """Eight terabytes, and everything agrees on it."""
    release.layer()["size"] = 1 << 43
    package = json.loads(release.blobs[release.layer("manifest.json")["digest"]])
    for file in package["files"]:
        file["size"] = release.layer(file["path"])["size"]
    other_package(release, files=package["files"])


def case_twin(release: Stored) -> None:
    twin = json.loads(json.dumps(release.layer()))
    twin["annotations"] = {NAME: "MODEL.safetensors", TITLE: "MODEL.safetensors"}
    release.manifest["layers"].append(twin)


def file_below_a_file(release: Stored) -> None:
    release.rename("LICENSE/model.safetensors")


def drop_layer(name: str) -> Callable[[Stored], None]:
    return lambda release: release.manifest["layers"].remove(release.layer(name))


MANIFESTS: dict[str, tuple[Callable[[Stored], object], str]] = {
    "traversal": (lambda it: it.rename("../../evil"), "would leave the target"),
    "traversal inside": (lambda it: it.rename("a/../../evil"), "would leave the target"),
    "absolute": (lambda it: it.rename("/tmp/evil"), "would leave the target"),
    "backslashes": (lambda it: it.rename("..\\evil"), "would leave the target"),
    "dot": (lambda it: it.rename("./model"), "would leave the target"),
    "empty name": (lambda it: it.rename(""), "would leave the target"),
    "line feed": (lambda it: it.rename("a\nquantline: all is well"), "would leave the target"),
    "long name": (lambda it: it.rename("n" * 5000), "is too long"),
    "second name": (lambda it: it.layer()["annotations"].update({TITLE: "x"}), "a second name"),
    "no name": (lambda it: it.layer().update(annotations={}), "has no name"),
    "same name twice": (duplicate_layer, "two layers are named 'model.safetensors'"),
    "same name but for case": (case_twin, "differs from another name only in case"),
    "file below a file": (file_below_a_file, "is below a file"),
    "negative size": (lambda it: it.layer().update(size=-1), "greater than or equal to 0"),
    "impossible size": (lambda it: it.layer().update(size=10**30), "size"),
    "size of a disk": (giant, "MiB of disk needed"),
    "size that is not the file's": (lambda it: it.layer().update(size=7), "is not the one that"),
    "size of a word": (lambda it: it.layer().update(size="huge"), "size"),
    "other hash": (lambda it: it.layer().update(digest="md5:" + "0" * 32), "digest"),
    "digest that is a path": (lambda it: it.layer().update(digest="sha256:../../x"), "digest"),
    "compressed layer": (
        lambda it: it.layer().update(mediaType="application/vnd.cncf.model.weight.v1.tar+gzip"),
        "is no kind of layer a release has",
    ),
    "another artifact": (lambda it: it.manifest.update(artifactType="x/y"), "expected a release"),
    "another config": (lambda it: it.manifest["config"].update(mediaType="x/y"), "its config is"),
    "huge config": (lambda it: it.manifest["config"].update(size=1 << 33), "too many"),
    "huge manifest.json": (lambda it: it.layer("manifest.json").update(size=1 << 33), "larger"),
    "no license": (drop_layer("LICENSE"), "no file LICENSE"),
    "no manifest.json": (drop_layer("manifest.json"), "no file manifest.json"),
    "a file less": (drop_layer("empty.txt"), "its config names other layers"),
    "no layers": (lambda it: it.manifest.update(layers=[]), "no file manifest.json"),
    "layers of no list": (lambda it: it.manifest.update(layers={}), "layers"),
    "too many layers": (
        lambda it: it.manifest.update(layers=[it.layer()] * 10_001),
        "layers",
    ),
    "another file than packaged": (
        lambda it: (it.replace_blob(it.layer(), b"other weights"), new_config(it)),
        "'model.safetensors' is not the one that manifest.json names",
    ),
    "a file that was not packaged": (
        lambda it: (it.rename("extra.safetensors"), new_config(it)),
        "is not the one that manifest.json names",
    ),
    "manifest.json of something else": (lambda it: other_package(it, extra=1), "unknown key"),
    "manifest.json with a bad version": (lambda it: other_package(it, version="../x"), "version"),
    "line feed in a key": (lambda it: other_package(it, **{"a\nb": 1}), "unknown key"),
}


@pytest.mark.parametrize(("damage", "expected"), MANIFESTS.values(), ids=list(MANIFESTS))
def test_a_hostile_manifest_is_refused(
    release: Stored,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Stored], object],
    expected: str,
) -> None:
    damage(release)
    assert expected in pull_from(liar_of(release), tmp_path, capsys)


def weights_of(liar: Liar) -> str:
    digest: str = liar.release.layer()["digest"]
    return digest


def answer(liar: Liar, *, body: bytes | None = None, status: int = 200, **headers: str) -> None:
    """What the liar says when it is asked for the weights."""
    if body is not None:
        liar.bodies[weights_of(liar)] = body
    liar.statuses[weights_of(liar)] = status
    liar.headers[weights_of(liar)] = {key.replace("_", "-"): it for key, it in headers.items()}


def longer(liar: Liar) -> None:
    answer(liar, body=b"w" * (1 << 20))


def endless_manifest(liar: Liar) -> None:
    liar.manifest = b" " * (5 << 20)


def deep_manifest(liar: Liar) -> None:
    liar.manifest = b"[" * 100_000


def set_manifest(data: bytes) -> Callable[[Liar], None]:
    def change(liar: Liar) -> None:
        liar.manifest = data

    return change


SERVERS: dict[str, tuple[Callable[[Liar], object], str]] = {
    "other bytes of the same length": (
        lambda it: answer(it, body=bytes(len(it.release.blobs[weights_of(it)]))),
        "other bytes than its digest says",
    ),
    "more bytes than announced": (longer, "more than its"),
    "fewer bytes": (lambda it: answer(it, body=b"w"), "1 bytes instead of"),
    "a length that never arrives": (lambda it: answer(it, body=b"w", Content_Length="99"), "broke"),
    "a decompression bomb": (
        lambda it: answer(it, Content_Encoding="gzip"),
        "in the encoding 'gzip'",
    ),
    "no such blob": (lambda it: answer(it, status=404), "answer 404"),
    "a failing disk": (lambda it: answer(it, status=500), "answer 500"),
    "a redirect to a file": (
        lambda it: answer(it, status=307, Location="file:///etc/passwd"),
        "answers the location",
    ),
    "a redirect to itself": (
        lambda it: answer(it, status=307, Location=f"/v2/a/b/blobs/{weights_of(it)}"),
        "redirects",
    ),
    "a part nobody asked for": (lambda it: answer(it, status=206), "another part of a blob"),
    "an endless manifest": (endless_manifest, "more than 4 MiB"),
    "a manifest without end": (deep_manifest, "JSON"),
    "no manifest": (set_manifest(b"<html>"), "not valid JSON"),
    "an empty manifest": (set_manifest(b""), "not valid JSON"),
    "a manifest of another version": (set_manifest(b'{"schemaVersion": 1}'), "schemaVersion"),
}


@pytest.mark.parametrize(("lie", "expected"), SERVERS.values(), ids=list(SERVERS))
def test_a_hostile_server_is_refused(
    release: Stored,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    lie: Callable[[Liar], object],
    expected: str,
) -> None:
    liar = liar_of(release)
    lie(liar)
    assert expected in pull_from(liar, tmp_path, capsys)


def test_a_manifest_that_is_not_its_digest_is_refused(
    release: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(liar_of(release)) as host:
        ref = f"{host}/a/b@sha256:{'0' * 64}"
        assert main(["pull", ref, "--to", "dir", "--into", str(tmp_path / "target")]) == 1
    assert "the registry has other bytes under it" in capsys.readouterr().err


def test_a_redirect_to_another_host_gets_no_credentials_and_its_bytes_are_compared(
    release: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = liar_of(release)
    with serving(elsewhere) as other:
        liar = liar_of(release)
        location = f"http://{other}/v2/a/b/blobs/{weights_of(liar)}"
        answer(liar, status=307, Location=location)
        with serving(liar) as host:
            docker_config(tmp_path / "docker", host, USER, PASSWORD)
            liar.statuses[TAG] = 401
            liar.headers[TAG] = {"WWW-Authenticate": 'Basic realm="x"'}
            target = tmp_path / "target"
            main(["pull", f"{host}/a/b:{TAG}", "--to", "dir", "--into", str(target)])
            liar.statuses.clear()
            answer(liar, status=307, Location=location)
            assert main(["pull", f"{host}/a/b:{TAG}", "--to", "dir", "--into", str(target)]) == 0
    assert any(authorization for _, authorization in liar.seen)
    assert [authorization for _, authorization in elsewhere.seen] == [None]
    assert PASSWORD not in "".join(capsys.readouterr())


@pytest.fixture
def archive(release: Stored, tmp_path: Path) -> bytes:
    path = tmp_path / "good.tar"
    assert main(["export", f"oci:artifacts/registry:{TAG}", str(path)]) == 0
    return path.read_bytes()


Members = list[tuple[tarfile.TarInfo, bytes]]


def members_of(archive: bytes) -> Members:
    with tarfile.open(fileobj=io.BytesIO(archive)) as file:
        members = file.getmembers()
        return [(member, file.extractfile(member).read()) for member in members]  # type: ignore[union-attr]


def packed(members: Members, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:  # type: ignore[call-overload]
        for member, data in members:
            file.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, 0
    return info


def with_member(info: tarfile.TarInfo) -> Callable[[Members], bytes]:
    return lambda members: packed([*members, (info, b"")])


def without(name: str) -> Callable[[Members], bytes]:
    return lambda members: packed([it for it in members if it[0].name != name])


def changed(name: str, data: bytes) -> Callable[[Members], bytes]:
    def change(members: Members) -> bytes:
        for info, _ in members:
            info.size = len(data) if info.name == name else info.size
        return packed([(info, data if info.name == name else it) for info, it in members])

    return change


def flipped_weights(members: Members) -> bytes:
    (info, data) = max(members, key=lambda it: b"weights" in it[1][:7])
    return changed(info.name, data[:-1] + bytes([data[-1] ^ 1]))(members)


def renamed_tag(members: Members) -> bytes:
    (index,) = [data for info, data in members if info.name == "index.json"]
    return changed("index.json", index.replace(TAG.encode(), b"../prod"))(members)


ARCHIVES: dict[str, tuple[Callable[[Members], bytes], str]] = {
    "traversal": (with_member(member("../../evil")), "has no place in an OCI image layout"),
    "absolute": (with_member(member("/tmp/evil")), "has no place"),
    "traversal in blobs": (with_member(member("blobs/sha256/../../../evil")), "has no place"),
    "another file": (with_member(member("run.sh")), "has no place"),
    "symbolic link": (
        with_member(member("blobs/sha256/" + "0" * 64, tarfile.SYMTYPE, "/etc/passwd")),
        "is not a plain file",
    ),
    "hard link": (
        with_member(member("blobs/sha256/" + "0" * 64, tarfile.LNKTYPE, "index.json")),
        "is not a plain file",
    ),
    "device": (with_member(member("index.json", tarfile.CHRTYPE)), "is not a plain file"),
    "named pipe": (with_member(member("oci-layout", tarfile.FIFOTYPE)), "is not a plain file"),
    "the index twice": (with_member(member("index.json")), "two members are named 'index.json'"),
    "no index": (without("index.json"), "index.json is missing"),
    "no layout file": (without("oci-layout"), "oci-layout is missing"),
    "another layout version": (
        changed("oci-layout", b'{"imageLayoutVersion": "9.0.0"}'),
        "expected the layout version",
    ),
    "a bomb": (lambda members: packed(members, "w:gz"), "expected an uncompressed tar file"),
    "no archive": (lambda members: b"PK\x03\x04" + bytes(2000), "expected an uncompressed tar"),
    "empty": (lambda members: b"", "expected an uncompressed tar file"),
    "cut off": (lambda members: packed(members)[:9000], "archive|ends within|missing|uncompressed"),
    "flipped bit": (flipped_weights, "not the bytes that were recorded"),
    "a name that is no tag": (renamed_tag, ""),
}


@pytest.mark.parametrize(("damage", "expected"), ARCHIVES.values(), ids=list(ARCHIVES))
def test_a_hostile_archive_is_refused(
    archive: bytes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Members], bytes],
    expected: str,
) -> None:
    """What names the release in the file never names it in the target."""
    path = tmp_path / "hostile.tar"
    path.write_bytes(damage(members_of(archive)))
    capsys.readouterr()
    before = everything_below(tmp_path)
    code = main(["import", str(path), f"oci:{tmp_path}/target"])
    lines = [it for it in capsys.readouterr().err.splitlines() if it.startswith("quantline imp")]
    written = everything_below(tmp_path) - before
    assert all(it.is_relative_to(tmp_path / "target") for it in written), written
    if not expected:  # it has its own version's tag, whatever the file calls it
        assert code == 0
        assert directory_records(tmp_path / "target")
        return
    assert code in (1, 2)
    assert len(lines) == 1
    assert any(part in lines[0] for part in expected.split("|")), lines[0]
    index = tmp_path / "target" / "index.json"
    assert not index.exists()
