"""Archives that lie, each refused in one line with nothing outside the target."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.core.files import directory_records
from tests.registry.hostile import TAG, Shell, Stored


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
    return lambda members: packed([(info, data) for info, data in members if info.name != name])


def changed(name: str, data: bytes) -> Callable[[Members], bytes]:
    def change(members: Members) -> bytes:
        for info, _ in members:
            info.size = len(data) if info.name == name else info.size
        return packed([(info, data if info.name == name else old) for info, old in members])

    return change


def flipped_weights(members: Members) -> bytes:
    (info, data) = max(members, key=lambda member: b"weights" in member[1][:7])
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
}


@pytest.mark.parametrize(("damage", "expected"), ARCHIVES.values(), ids=list(ARCHIVES))
def test_a_hostile_archive_is_refused(
    archive: bytes, shell: Shell, damage: Callable[[Members], bytes], expected: str
) -> None:
    path = shell.tmp_path / "hostile.tar"
    path.write_bytes(damage(members_of(archive)))
    line = shell.refusal("import", str(path), f"oci:{shell.target}")
    assert any(part in line for part in expected.split("|")), line
    assert not (shell.target / "index.json").exists()


def test_a_release_has_its_own_tag_whatever_the_archive_calls_it(
    archive: bytes, shell: Shell
) -> None:
    path = shell.tmp_path / "hostile.tar"
    path.write_bytes(renamed_tag(members_of(archive)))
    assert shell.run("import", str(path), f"oci:{shell.target}") == (0, [])
    assert directory_records(shell.target)
