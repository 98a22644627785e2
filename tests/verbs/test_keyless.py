"""`quantline verify` of a signature without a key: by an identity, offline, and nobody else's."""

from pathlib import Path

import pytest

from pipeline.core.workspace import Workspace
from pipeline.stages import publish
from tests.commands import AWQ, GGUF, refused, run
from tests.keyless import Sigstore
from tests.registry_server import release_params

JANE, ISSUER = "jane@example.org", "https://issuer.example.org"
BY_JANE = ("--identity", JANE, "--issuer", ISSUER)


@pytest.fixture
def trusted(packaged: Workspace, tmp_path: Path) -> Path:
    """A release that Jane signed after it was packaged; the trusted root to verify it."""
    sigstore = Sigstore()
    sigstore.sign(
        packaged.package_dir("awq-w4-g128"),
        packaged.packages_dir / "awq-w4-g128.signature.json",
        identity=JANE,
        issuer=ISSUER,
    )
    publish.run(packaged, release_params())
    path = tmp_path / "trusted_root.json"
    path.write_text(sigstore.trusted_root())
    return path


def test_a_signature_is_checked_against_an_identity(
    trusted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "there, not checked" in run(capsys, "verify", AWQ)
    said = run(capsys, "verify", AWQ, *BY_JANE, "--trusted-root", trusted)
    assert f"signature: by {JANE}, whom {ISSUER} vouched for" in said


@pytest.mark.parametrize(
    ("identity", "issuer", "said"),
    [
        ("joe@example.org", ISSUER, "SANs do not match joe@example.org"),
        (JANE, "https://example.com", "OIDCIssuer does not match"),
    ],
)
def test_nobody_elses_signature_counts(
    trusted: Path, capsys: pytest.CaptureFixture[str], identity: str, issuer: str, said: str
) -> None:
    arguments = ("--identity", identity, "--issuer", issuer, "--trusted-root", trusted)
    assert said in refused(capsys, "verify", AWQ, *arguments)


def test_what_another_authority_certifies_does_not_count(
    trusted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trusted.write_text(Sigstore().trusted_root())
    said = refused(capsys, "verify", AWQ, *BY_JANE, "--trusted-root", trusted)
    assert "failed to build timestamp certificate chain" in said


def test_a_signature_of_other_files_does_not_count(
    packaged: Workspace, trusted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signature = packaged.packages_dir / "awq-w4-g128.signature.json"
    signature.rename(packaged.packages_dir / "gguf-q4-k-m.signature.json")
    publish.run(packaged, release_params())
    said = refused(capsys, "verify", GGUF, *BY_JANE, "--trusted-root", trusted)
    assert "not a signature of these files" in said
    assert "model.gguf" in said


def test_a_key_does_not_stand_for_an_identity(
    packaged: Workspace, trusted: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    key = tmp_path / "key.pub"
    key.write_bytes(Sigstore().public_key())
    assert "not a signature of these files" in refused(capsys, "verify", AWQ, "--key", key)


def test_a_trusted_root_is_a_file_of_its_format(
    trusted: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for text in ("{}", "no json", None):
        path = tmp_path / "other.json"
        path.write_text(text) if text else path.unlink()
        said = refused(capsys, "verify", AWQ, *BY_JANE, "--trusted-root", path)
        assert "expected Sigstore's trusted root" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--identity", JANE), "expected both"),
        (("--issuer", ISSUER), "expected both"),
        ((*BY_JANE, "--key", "key.pub"), "expected one of them"),
        (("--trusted-root", "trusted_root.json"), "expected --identity and --issuer as well"),
    ],
)
def test_who_signed_is_said_whole_or_not_at_all(
    packaged: Workspace, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert said in refused(capsys, "verify", AWQ, *arguments)
