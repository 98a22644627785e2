"""A manifest names files that stay inside their directory, and its digest means exactly them."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.core.errors import InputError
from pipeline.core.file_records import FileRecord, relative_posix, tree_digest
from pipeline.core.files import directory_records
from pipeline.oci.records import Descriptor, descriptor_of
from pipeline.records.base import BaseManifest
from pipeline.records.licenses import AppliedLicense, LicenseFacts

SHA256 = hashlib.sha256(b"").hexdigest()
LICENSE = LicenseFacts(
    id="mit",
    name=None,
    link=None,
    text_path="LICENSE",
    text_sha256=SHA256,
    text_words_sha256=SHA256,
    base_model=("org/a",),
)


def record(path: str, *, size: int = 0, sha256: str = SHA256) -> FileRecord:
    return FileRecord(path=path, size=size, sha256=sha256)


def manifest(*files: FileRecord) -> BaseManifest:
    return BaseManifest(
        source="demo",
        revision=None,
        architecture="LlamaForCausalLM",
        files=files,
        digest=tree_digest(files),
        unused_tensors=(),
        copied_tensors=(),
        license=LICENSE,
        applied_license=AppliedLicense(
            id="mit", name="MIT License", expression="MIT", decision=None
        ),
    )


@pytest.mark.parametrize("path", ["a", "a/b.c", "..a", "a..", ".hidden", "a b", "é", "…/x"])
def test_relative_paths(path: str) -> None:
    assert relative_posix(path) == path
    assert record(path).path == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/etc/passwd",
        "..",
        "../x",
        "a/../b",
        "a/..",
        "./a",
        "a/./b",
        "a//b",
        "a/",
        "a\\b",
        "..\\x",
        "C:\\x",
        "a\0b",
        "a\nb",
        "a\x7fb",
        "a\udc80b",
    ],
)
def test_paths_that_could_leave_or_confuse_are_refused(path: str) -> None:
    with pytest.raises(ValidationError):
        record(path)


@pytest.mark.parametrize("sha256", ["", "x" * 64, SHA256.upper(), SHA256[:-1], SHA256 + "\n"])
def test_a_digest_is_64_lower_case_hex_digits(sha256: str) -> None:
    with pytest.raises(ValidationError):
        record("a", sha256=sha256)


def test_a_size_is_not_negative() -> None:
    with pytest.raises(ValidationError):
        record("a", size=-1)


def test_the_digest_does_not_depend_on_the_order_of_files() -> None:
    files = (record("b"), record("a/c"), record("a-c"))
    assert tree_digest(files) == tree_digest(tuple(reversed(files)))


def test_the_digest_changes_with_a_name_a_byte_or_a_file() -> None:
    other = hashlib.sha256(b"x").hexdigest()
    digests = [
        tree_digest((record("a"),)),
        tree_digest((record("b"),)),
        tree_digest((record("a", sha256=other),)),
        tree_digest((record("a"), record("b"))),
        tree_digest(()),
    ]
    assert len(set(digests)) == len(digests)


def test_the_digest_is_what_sha256sum_says(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b", "a-c", "sub/x y", "Z"):
        (tmp_path / name).write_text(name)
    command = "find * -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"
    printed = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert tree_digest(directory_records(tmp_path)) == printed.stdout.split()[0]


def test_a_manifest_survives_its_file_form() -> None:
    whole = manifest(record("a", size=3), record("LICENSE"))
    assert BaseManifest.from_bytes(whole.to_bytes(), source="x") == whole
    assert whole.to_bytes().endswith(b"}\n")


def test_only_safetensors_count_as_weights() -> None:
    whole = manifest(record("model.safetensors", size=3), record("model.safetensors.json", size=4))
    assert (whole.weight_bytes, whole.size_bytes) == (3, 7)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ((b'"demo"', b"1"), "source = 1: Input should be a valid string"),
        ((b'"path": "a"', b'"path": "../a"'), "files.0.path = '../a': expected a path without"),
        ((b'"source"', b'"sauce"'), "sauce: unknown key; source was expected there"),
        ((b'"size": 0', b'"size": 0, "extra": 1'), "files.0.extra: unknown key"),
        ((b"{", b""), r"not valid JSON"),
    ],
)
def test_a_damaged_manifest_says_what_is_wrong_and_what_to_do(
    change: tuple[bytes, bytes], expected: str
) -> None:
    data = manifest(record("a")).to_bytes().replace(*change, 1)
    with pytest.raises(InputError, match=expected) as caught:
        BaseManifest.from_bytes(data, source="base.manifest.json")
    message = str(caught.value)
    assert message.startswith("base.manifest.json: ")
    assert message.endswith("delete it and run `dvc repro` again")
    assert "\n" not in message


def test_a_digest_is_hex_in_our_records_and_text_with_its_algorithm_in_those_of_oci() -> None:
    data = b"weights"
    sha256 = hashlib.sha256(data).hexdigest()
    file = record("model.safetensors", size=len(data), sha256=sha256)
    blob = descriptor_of(data, "text/plain")
    assert (file.digest, file.digest.hex) == (blob.digest, blob.digest.hex)
    assert (blob.digest, blob.digest.hex) == (f"sha256:{sha256}", sha256)
    assert json.loads(file.to_bytes())["sha256"] == sha256
    assert json.loads(blob.to_bytes())["digest"] == f"sha256:{sha256}"
    assert Descriptor.from_bytes(blob.to_bytes(), source="blob") == blob


@pytest.mark.parametrize("digest", [SHA256, f"sha512:{SHA256}", f"sha256:{SHA256}0", "sha256:AB"])
def test_what_is_no_digest_is_refused_in_one_line(digest: str) -> None:
    data = json.dumps({"mediaType": "text/plain", "digest": digest, "size": 0}).encode()
    with pytest.raises(InputError, match=r"blob: digest = .*: String should match pattern"):
        Descriptor.from_untrusted(data, source="blob")
