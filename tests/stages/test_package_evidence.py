"""Bill of materials, provenance and signature of a package: valid, whole and checked."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from pipeline.core.errors import InputError
from pipeline.core.files import directory_records, file_sha256
from pipeline.records.release import PackageIndex
from pipeline.records.selection import Verdict
from pipeline.stages import package
from tests.support import ROOT
from tests.workspace import MadeRun, make_workspace

VERDICTS = {"awq-w4-g128": Verdict.APPROVED, "gguf-q4-k-m": Verdict.APPROVED}


@pytest.fixture
def made(tmp_path: Path) -> MadeRun:
    return make_workspace(tmp_path, VERDICTS)


def run(made: MadeRun, *, signing_key: str | None = None, name: str = "tiny") -> None:
    changes = {"signing_key": signing_key, "name": name}
    release = made.params.release.model_copy(update=changes)
    package.run(made.workspace, made.params.model_copy(update={"release": release}))


def beside(made: MadeRun, name: str, suffix: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(made.read(f"packages/{name}.{suffix}.json"))
    return values


def test_weights_are_read_once_for_copy_records_and_signature(made: MadeRun) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    (made.workspace.root / "signing.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    opened: list[str] = []
    is_over = False

    def note_weights(event: str, arguments: tuple[Any, ...]) -> None:
        if is_over or event != "open":  # a hook stays for as long as the process runs
            return
        path, mode = str(arguments[0]), str(arguments[1])
        if path.endswith((".safetensors", ".gguf")) and not {"w", "x"} & set(mode):
            opened.append(Path(path).name)

    sys.addaudithook(note_weights)
    run(made, signing_key="signing.pem")
    is_over = True
    assert sorted(opened) == ["model-Q4_K_M.gguf", "model.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("license_id", ["mit", "llama3.1", "gemma"])
def test_the_bill_of_materials_passes_the_strict_validator(tmp_path: Path, license_id: str) -> None:
    # Not above: its import takes seconds, in every worker.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = ROOT / "tests" / "licenses" / f"{license_id}.txt"
    made = make_workspace(
        tmp_path,
        VERDICTS,
        license_id=license_id,
        license_text=text.read_text() if text.exists() else None,
    )
    run(made, name="Llama-tiny")
    for name in VERDICTS:
        bom = made.read(f"packages/{name}.bom.json")
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bom) is None
        component = json.loads(bom)["metadata"]["component"]
        metrics = component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
        assert {row["type"] for row in metrics} >= {"acc", "perplexity", "kl_divergence"}
        scores = next(row for row in metrics if row["slice"] == "trades_en")
        bounds = scores["confidenceInterval"]
        assert float(bounds["lowerBound"]) < float(scores["value"]) < float(bounds["upperBound"])


def test_the_bill_of_materials_lists_every_file(made: MadeRun) -> None:
    run(made)
    for name in VERDICTS:
        bom = beside(made, name, "bom")
        files = {
            part["name"]: part["hashes"][0]["content"]
            for part in bom["components"]
            if part["type"] == "file"
        }
        directory = made.workspace.package_dir(name)
        manifest_sha256 = file_sha256(directory / "manifest.json")
        assert files | {"manifest.json": manifest_sha256} == {
            file.path: file.sha256 for file in directory_records(directory)
        }
        assert bom["metadata"]["component"]["hashes"][0]["content"] == manifest_sha256


def test_the_provenance_names_existing_files_by_digest(made: MadeRun) -> None:
    run(made)
    for name in VERDICTS:
        statement = beside(made, name, "provenance")
        directory = made.workspace.package_dir(name)
        assert {it["name"]: it["digest"]["sha256"] for it in statement["subject"]} == {
            file.path: file.sha256 for file in directory_records(directory)
        }
        records = statement["predicate"]["runDetails"]["byproducts"]
        for record in records:
            path = made.workspace.artifacts_dir / record["name"]
            assert record["digest"]["sha256"] == file_sha256(path)
        assert [record["annotations"]["stage"] for record in records] == [
            *("fetch", "fetch", "fetch"),  # the checkpoint, its findings, the calibration data
            *("calibrate", "quantize", "evaluate", "evaluate", "select", "benchmark"),
        ]
        build = statement["predicate"]["buildDefinition"]
        sources = {it["name"]: it["digest"] for it in build["resolvedDependencies"]}
        assert sources["org/tiny"]["gitCommit"] == "ab" * 20
        assert build["internalParameters"]["verdict"] == "approved"
        license_sha256 = file_sha256(directory / "LICENSE")
        assert sources["license text"]["sha256"] == license_sha256


def test_the_index_names_what_lies_beside_a_package(made: MadeRun) -> None:
    run(made)
    workspace = made.workspace
    index = PackageIndex.from_bytes(workspace.packages_path.read_bytes(), source="index")
    for entry in index.packages:
        assert [file.path for file in entry.evidence] == [
            f"{entry.variant}.bom.json",
            f"{entry.variant}.provenance.json",
        ]
        for file in entry.evidence:
            assert file_sha256(workspace.packages_dir / file.path) == file.sha256
        assert "It is not signed with a key" in made.read(f"packages/{entry.variant}/README.md")


def key_files(directory: Path, *, password: bytes | None = None) -> Path:
    """A new private key in signing.pem and its public half in public.pem."""
    key = ec.generate_private_key(ec.SECP256R1())
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (directory / "signing.pem").write_bytes(private)
    (directory / "public.pem").write_bytes(public)
    return directory / "public.pem"


def verify(made: MadeRun, name: str, public_key: Path) -> None:
    from model_signing.verifying import Config

    config: Any = Config()  # type: ignore[no-untyped-call]
    config.use_elliptic_key_verifier(public_key=public_key).verify(
        made.workspace.package_dir(name),
        made.workspace.packages_dir / f"{name}.signature.json",
    )


@pytest.mark.parametrize("password", [None, b"a secret"])
def test_a_signature_holds_until_a_bit_changes(
    made: MadeRun, monkeypatch: pytest.MonkeyPatch, password: bytes | None
) -> None:
    public_key = key_files(made.workspace.root, password=password)
    monkeypatch.setenv("QUANTLINE_SIGNING_PASSWORD", (password or b"").decode())
    run(made, signing_key="signing.pem")
    for name in VERDICTS:
        verify(made, name, public_key)
    index = PackageIndex.from_bytes(made.workspace.packages_path.read_bytes(), source="index")
    assert all(it.evidence[-1].path.endswith(".signature.json") for it in index.packages)
    assert "It is signed with a key." in made.read("packages/awq-w4-g128/README.md")
    weights = made.workspace.package_dir("awq-w4-g128") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        verify(made, "awq-w4-g128", public_key)


def test_what_cannot_sign_is_refused_before_anything_is_written(made: MadeRun) -> None:
    root = made.workspace.root
    (root / "text.pem").write_text("no key\n")
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (root / "rsa.pem").write_bytes(
        rsa_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    key_files(root, password=b"a secret")
    for name, expected in (
        ("none.pem", "no such file"),
        ("text.pem", "expected a private key in PEM"),
        ("rsa.pem", "expected an elliptic-curve key"),
        ("signing.pem", "with its password in QUANTLINE_SIGNING_PASSWORD"),
    ):
        with pytest.raises(InputError, match=expected):
            run(made, signing_key=name)
    assert not made.workspace.packages_dir.exists()
