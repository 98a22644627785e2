"""`quantline verify` of a signature by a key: from digests, and before any weights are read."""

import resource
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from pipeline.core.files import directory_records, file_sha256
from pipeline.core.workspace import Workspace
from pipeline.release.signing import sign_files
from pipeline.stages import publish
from tests.commands import AWQ, refused, run
from tests.keyless import new_key
from tests.registry_server import release_params, write_packages

LIMIT_BYTES = 1 << 20


@pytest.fixture
def signed(packaged: Workspace, tmp_path: Path) -> Path:
    """The public key that a published release of 3 MiB is signed by; a stranger's is beside it."""
    write_packages(packaged, "awq-w4-g128", content=bytes(3 << 20))
    for name in ("signer", "stranger"):
        key = new_key()
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / f"{name}.pem").write_bytes(private)
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / f"{name}.pub").write_bytes(public)
    signature = packaged.packages_dir / "awq-w4-g128.signature.json"
    files = directory_records(packaged.package_dir("awq-w4-g128"))
    sign_files(files, tmp_path / "signer.pem", signature, name="awq-w4-g128")
    publish.run(packaged, release_params())
    return tmp_path / "signer.pub"


def weights_blob(workspace: Workspace) -> Path:
    weights = workspace.package_dir("awq-w4-g128") / "model.safetensors"
    return workspace.registry_dir / "blobs" / "sha256" / file_sha256(weights)


def test_verify_keeps_no_weights_on_disk(
    signed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file may become larger than a third of the weights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, before[1]))
    try:
        said = run(capsys, "verify", AWQ, "--key", signed)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "digests of 6 files: right" in said
    assert f"signature: by the owner of {signed}" in said


def test_a_wrong_signer_is_found_before_any_weights_are_read(
    packaged: Workspace, signed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights_blob(packaged).unlink()
    stranger = signed.with_name("stranger.pub")
    said = refused(capsys, "verify", AWQ, "--key", stranger)
    assert "not a signature of these files" in said


def test_a_right_signature_does_not_excuse_damaged_weights(
    packaged: Workspace, signed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = weights_blob(packaged)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    said = refused(capsys, "verify", AWQ, "--key", signed)
    assert "other bytes than its digest says" in said


@pytest.mark.parametrize("ignored", [(), ("README.md",)])
def test_every_file_has_to_be_signed(
    packaged: Workspace,
    signed: Path,
    capsys: pytest.CaptureFixture[str],
    ignored: tuple[str, ...],
) -> None:
    from model_signing.hashing import Config

    config = Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)
    sign_otherwise(packaged, signed, config)
    if ignored:
        said = refused(capsys, "verify", AWQ, "--key", signed)
        assert "not a signature of these files" in said
        assert "README.md" in said
    else:
        run(capsys, "verify", AWQ, "--key", signed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unit", "options", "said"),
    [
        ("shard", {}, "signs ('shards', 'sha256')"),
        ("file", {"hashing_algorithm": "blake3"}, "signs ('files', 'blake3')"),
    ],
)
def test_a_signature_of_another_kind_is_one_line(
    packaged: Workspace,
    signed: Path,
    capsys: pytest.CaptureFixture[str],
    unit: str,
    options: dict[str, str],
    said: str,
) -> None:
    from model_signing.hashing import Config

    config = Config()
    getattr(config, f"use_{unit}_serialization")(**options)
    sign_otherwise(packaged, signed, config)
    assert said in refused(capsys, "verify", AWQ, "--key", signed)


def sign_otherwise(workspace: Workspace, public_key: Path, kind: object) -> None:
    """Publish into an empty layout, with a signature that is made another way."""
    from model_signing import signing

    signature = workspace.packages_dir / "awq-w4-g128.signature.json"
    config = signing.Config().use_elliptic_key_signer(private_key=public_key.with_suffix(".pem"))
    config.set_hashing_config(kind).sign(workspace.package_dir("awq-w4-g128"), signature)
    write_packages(workspace, "awq-w4-g128", content=bytes(3 << 20))
    shutil.rmtree(workspace.registry_dir)
    publish.run(workspace, release_params())
