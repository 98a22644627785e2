"""Registries that lie, each refused in one line with nothing outside the target.

Every case is a whole release with one thing wrong, pulled over the command line.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli import main
from tests.oci.fake_server import Answer, fake_server
from tests.registry.hostile import NAME, TAG, TITLE, Liar, Shell, Stored, liar_of
from tests.registry_server import PASSWORD, USER, docker_config

Damage = Callable[[Stored], object]


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


def too_many_layers(release: Stored) -> None:
    release.manifest["layers"] = [release.layer()] * 10_001


def renamed(name: str) -> Damage:
    return lambda release: release.rename(name)


def layer_with(name: str = "model.safetensors", **changes: object) -> Damage:
    return lambda release: release.layer(name).update(changes)


def manifest_with(**changes: object) -> Damage:
    return lambda release: release.manifest.update(changes)


def config_with(**changes: object) -> Damage:
    return lambda release: release.manifest["config"].update(changes)


def package_with(**changes: object) -> Damage:
    return lambda release: other_package(release, **changes)


def drop_layer(name: str) -> Damage:
    return lambda release: release.manifest["layers"].remove(release.layer(name))


MANIFESTS: dict[str, tuple[Damage, str]] = {
    "traversal": (renamed("../../evil"), "would leave the target"),
    "traversal inside": (renamed("a/../../evil"), "would leave the target"),
    "absolute": (renamed("/tmp/evil"), "would leave the target"),
    "backslashes": (renamed("..\\evil"), "would leave the target"),
    "dot": (renamed("./model"), "would leave the target"),
    "empty name": (renamed(""), "would leave the target"),
    "line feed": (renamed("a\nquantline: all is well"), "would leave the target"),
    "long name": (renamed("n" * 5000), "is too long"),
    "second name": (
        lambda release: release.layer()["annotations"].update({TITLE: "x"}),
        "a second name",
    ),
    "no name": (layer_with(annotations={}), "has no name"),
    "same name twice": (duplicate_layer, "two layers are named 'model.safetensors'"),
    "same name but for case": (case_twin, "differs from another name only in case"),
    "file below a file": (renamed("LICENSE/model.safetensors"), "is below a file"),
    "negative size": (layer_with(size=-1), "greater than or equal to 0"),
    "impossible size": (layer_with(size=10**30), "size"),
    "size of a disk": (giant, "MiB of disk needed"),
    "size that is not the file's": (layer_with(size=7), "is not the one that"),
    "size of a word": (layer_with(size="huge"), "size"),
    "other hash": (layer_with(digest="md5:" + "0" * 32), "digest"),
    "digest that is a path": (layer_with(digest="sha256:../../x"), "digest"),
    "compressed layer": (
        layer_with(mediaType="application/vnd.cncf.model.weight.v1.tar+gzip"),
        "is no kind of layer a release has",
    ),
    "another artifact": (manifest_with(artifactType="x/y"), "expected a release"),
    "another config": (config_with(mediaType="x/y"), "its config is"),
    "huge config": (config_with(size=1 << 33), "too many"),
    "huge manifest.json": (layer_with("manifest.json", size=1 << 33), "larger"),
    "no license": (drop_layer("LICENSE"), "no file LICENSE"),
    "no manifest.json": (drop_layer("manifest.json"), "no file manifest.json"),
    "a file less": (drop_layer("empty.txt"), "its config names other layers"),
    "no layers": (manifest_with(layers=[]), "no file manifest.json"),
    "layers of no list": (manifest_with(layers={}), "layers"),
    "too many layers": (too_many_layers, "layers"),
    "another file than packaged": (
        lambda release: (
            release.replace_blob(release.layer(), b"other weights"),
            new_config(release),
        ),
        "'model.safetensors' is not the one that manifest.json names",
    ),
    "a file that was not packaged": (
        lambda release: (release.rename("extra.safetensors"), new_config(release)),
        "is not the one that manifest.json names",
    ),
    "manifest.json of something else": (
        lambda release: other_package(release, extra=1),
        "unknown key",
    ),
    "manifest.json with a bad version": (
        lambda release: other_package(release, version="../x"),
        "version",
    ),
    "line feed in a key": (package_with(**{"a\nb": 1}), "unknown key"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "expected"), MANIFESTS.values(), ids=list(MANIFESTS))
def test_a_hostile_manifest_is_refused(
    release: Stored, shell: Shell, damage: Damage, expected: str
) -> None:
    damage(release)
    assert expected in shell.refused_pull(liar_of(release))


def set_manifest(data: bytes) -> Callable[[Liar], None]:
    def change(liar: Liar) -> None:
        liar.manifest = data

    return change


SERVERS: dict[str, tuple[Callable[[Liar], object], str]] = {
    "other bytes of the same length": (
        lambda liar: liar.lie(body=bytes(len(liar.release.blobs[liar.weights]))),
        "other bytes than its digest says",
    ),
    "more bytes than announced": (lambda liar: liar.lie(body=b"w" * (1 << 20)), "more than its"),
    "fewer bytes": (lambda liar: liar.lie(body=b"w"), "1 bytes instead of"),
    "a length that never arrives": (lambda liar: liar.lie(body=b"w", Content_Length="99"), "broke"),
    "a decompression bomb": (
        lambda liar: liar.lie(Content_Encoding="gzip"),
        "in the encoding 'gzip'",
    ),
    "no such blob": (lambda liar: liar.lie(status=404), "answer 404"),
    "a failing disk": (lambda liar: liar.lie(status=500), "answer 500"),
    "a redirect to a file": (
        lambda liar: liar.lie(status=307, Location="file:///etc/passwd"),
        "answers the location",
    ),
    "a redirect to itself": (
        lambda liar: liar.lie(status=307, Location=f"/v2/a/b/blobs/{liar.weights}"),
        "redirects",
    ),
    "a part nobody asked for": (lambda liar: liar.lie(status=206), "another part of a blob"),
    "an endless manifest": (set_manifest(b" " * (5 << 20)), "more than 4 MiB"),
    "a manifest without end": (set_manifest(b"[" * 100_000), "JSON"),
    "no manifest": (set_manifest(b"<html>"), "not valid JSON"),
    "an empty manifest": (set_manifest(b""), "not valid JSON"),
    "a manifest of another version": (set_manifest(b'{"schemaVersion": 1}'), "schemaVersion"),
}


@pytest.mark.parametrize(("lie", "expected"), SERVERS.values(), ids=list(SERVERS))
def test_a_hostile_server_is_refused(
    release: Stored, shell: Shell, lie: Callable[[Liar], object], expected: str
) -> None:
    liar = liar_of(release)
    lie(liar)
    assert expected in shell.refused_pull(liar)


def test_a_manifest_that_is_not_its_digest_is_refused(release: Stored, shell: Shell) -> None:
    line = shell.refused_pull(liar_of(release), f"@sha256:{'0' * 64}")
    assert "the registry has other bytes under it" in line


def test_a_redirect_to_another_host_gets_no_credentials_and_its_bytes_are_compared(
    release: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    liar = liar_of(release)

    def guarded(method: str, path: str) -> Answer:
        if not server.seen[-1].authorization:
            return Answer(401, {"WWW-Authenticate": 'Basic realm="x"'})
        return liar.answer(method, path)

    with fake_server(liar_of(release).answer) as storage, fake_server(guarded) as server:
        docker_config(tmp_path / "docker", server.host, USER, PASSWORD)
        liar.lie(status=307, Location=f"{storage.url}/v2/a/b/blobs/{liar.weights}")
        target = str(tmp_path / "target")
        assert main(["pull", f"{server.host}/a/b:{TAG}", "--to", "dir", "--into", target]) == 0
    assert any(request.authorization for request in server.seen)
    assert [request.authorization for request in storage.seen] == [None]
    assert PASSWORD not in "".join(capsys.readouterr())
