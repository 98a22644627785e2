"""The verbs for releases, over the command line, against a layout and Debian's docker-registry."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.core.files import directory_records, file_sha256
from pipeline.core.record import sha256_hex
from pipeline.core.workspace import Workspace
from pipeline.oci.blob import Blob, bytes_blob
from pipeline.oci.layout import OciLayout
from pipeline.oci.records import EMPTY_INDEX, INDEX_TYPE
from pipeline.registry.evidence import NewEvidence, attach, new_evidence
from pipeline.registry.evidence_kinds import BOM, referrers_tag
from pipeline.stages import publish
from tests.commands import AWQ, GGUF, refused, run
from tests.modelfile_reader import read_modelfile
from tests.registry_server import (
    PASSWORD,
    USER,
    docker_config,
    registry_server,
    release_params,
    use_registry,
)
from tests.support import require_program


@pytest.fixture(params=["layout", pytest.param("server", marks=pytest.mark.slow)])
def published(
    packaged: Workspace, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Workspace]:
    """The same, published, to a layout or a server that wants a login and speaks TLS."""
    if request.param == "layout":
        publish.run(packaged, release_params())
        yield packaged
        return
    with registry_server(tmp_path / "registry", login=True, tls=True) as server:
        docker_config(tmp_path / "docker", server.host, USER, PASSWORD)
        use_registry(packaged, server.url)
        publish.run(packaged, release_params(url=server.url))
        yield packaged


def test_ls_shows_versions_and_aliases_and_nothing_internal(
    published: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "promote", AWQ, "prod")
    lines = run(capsys, "ls").splitlines()
    assert [line.split()[0] for line in lines] == [AWQ, GGUF, "1.2.3-q4_K_M", "prod"]
    assert lines[2].endswith("  for `ollama pull`")
    assert lines[3].endswith(f"  is {AWQ}")


def test_verify_passes_and_names_what_it_found(
    published: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run(capsys, "verify", AWQ)
    assert "digests of 6 files: right" in said
    assert "license: MIT" in said
    assert "evidence: bom, evaluation, provenance" in said
    assert "signature: none" in said


def test_pull_is_the_package_again(
    published: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = tmp_path / "pulled"
    assert run(capsys, "pull", AWQ, "--to", "dir", "--into", target) == f"{target}\n"
    assert directory_records(target) == directory_records(published.package_dir("awq-w4-g128"))
    assert sorted(path.name for path in tmp_path.iterdir() if "pulled" in path.name) == ["pulled"]


def test_a_second_pull_changes_nothing_and_never_replaces_what_is_there(
    published: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = tmp_path / "pulled"
    run(capsys, "pull", AWQ, "--to", "vllm", "--into", target)
    assert run(capsys, "pull", AWQ, "--to", "vllm", "--into", target) == f"vllm serve {target}\n"
    (target / "mine.txt").write_text("a note")
    assert "holds other files" in refused(capsys, "pull", AWQ, "--to", "dir", "--into", target)
    assert (target / "mine.txt").read_text() == "a note"


def test_pull_to_ollama_writes_the_tree_that_ollama_reads(
    published: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    said = run(capsys, "pull", GGUF, "--to", "ollama", "--into", models)
    assert said == f"OLLAMA_MODELS={models} ollama run tiny:1.2.3-q4_K_M\n"
    (manifest_path,) = [path for path in (models / "manifests").rglob("*") if path.is_file()]
    assert manifest_path == models / "manifests/registry.ollama.ai/library/tiny/1.2.3-q4_K_M"
    manifest = json.loads(manifest_path.read_bytes())
    assert set(manifest) == {"schemaVersion", "mediaType", "config", "layers"}
    assert manifest["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    layers = {}
    for blob in (*manifest["layers"], manifest["config"]):
        path = models / "blobs" / blob["digest"].replace(":", "-")
        assert "sha256:" + file_sha256(path) == blob["digest"]
        assert path.stat().st_size == blob["size"]
        layers[blob["mediaType"].split(".")[-1]] = path.read_bytes()
    package = published.package_dir("gguf-q4-k-m")
    assert layers["model"] == (package / "model.gguf").read_bytes()
    modelfile = read_modelfile((package / "Modelfile").read_text())
    assert layers["license"].decode() == dict(modelfile)["license"]
    assert json.loads(layers["params"]) == {"num_ctx": 1024, "stop": ["<|end|>"]}
    config = json.loads(layers["v1+json"])
    assert config["model_format"] == "gguf"
    assert config["model_type"] == "3.14M"
    assert config["requires"] == "0.30.0"


def test_each_target_refuses_what_it_cannot_use(
    published: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for ref, to, said in ((AWQ, "ollama", "Ollama takes gguf"), (GGUF, "vllm", "vLLM does not")):
        assert said in refused(capsys, "pull", ref, "--to", to, "--into", tmp_path / "target")
        assert not (tmp_path / "target").exists()


def test_an_alias_moves_by_command_and_its_history_stays(
    published: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no such alias" in refused(capsys, "rollback", "prod")
    run(capsys, "promote", AWQ, "prod")
    run(capsys, "promote", AWQ, "prod")
    assert "no earlier release" in refused(capsys, "rollback", "prod")
    run(capsys, "promote", GGUF, "prod")
    assert "gguf" in run(capsys, "show", "prod")
    assert "awq" in run(capsys, "rollback", "prod")
    shown = run(capsys, "show", "prod").splitlines()
    assert shown[0].split() == ["release", "tiny", "1.2.3", "awq-w4-g128"]
    moves = [line.split()[0] for line in shown if line.startswith(("promote", "rollback"))]
    assert moves == ["promote", "promote", "rollback"]
    assert "no earlier release" in refused(capsys, "rollback", "prod")


def test_a_version_whose_tag_was_moved_is_not_taken_for_it(
    packaged: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """By somebody who may write to the registry, to another release that is whole and signed."""
    publish.run(packaged, release_params())
    store = OciLayout(packaged.registry_dir, shown_as="artifacts/registry")
    stored = store.manifest(GGUF)
    assert stored is not None
    store.push_manifest(bytes_blob(stored.data, stored.descriptor.media_type), AWQ)
    for command in (
        ("verify", AWQ),
        ("show", AWQ),
        ("promote", AWQ, "prod"),
        ("pull", AWQ, "--to", "dir", "--into", tmp_path / "pulled"),
        ("export", AWQ, tmp_path / "release.tar"),
    ):
        said = refused(capsys, *command)
        assert f"is tiny 1.2.3 gguf-q4-k-m, whose tag is {GGUF}; somebody moved" in said
    run(capsys, "verify", f"oci:artifacts/registry@{stored.descriptor.digest}")


def test_an_alias_that_something_else_moved_is_shown(
    packaged: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    publish.run(packaged, release_params())
    run(capsys, "promote", AWQ, "prod")
    assert "moved since" not in run(capsys, "show", "prod")
    store = OciLayout(packaged.registry_dir, shown_as="artifacts/registry")
    stored = store.manifest(GGUF)
    assert stored is not None
    store.push_manifest(bytes_blob(stored.data, stored.descriptor.media_type), "prod")
    assert "moved since" in run(capsys, "show", "prod")
    run(capsys, "promote", AWQ, "prod")
    assert "moved since" not in run(capsys, "show", "prod")


@pytest.mark.parametrize(
    "alias", ["1.2.3-awq", "Prod", "sha256-00", "prod.history", "-x", "a" * 99]
)
def test_what_could_be_a_version_is_no_alias(
    packaged: Workspace, capsys: pytest.CaptureFixture[str], alias: str
) -> None:
    publish.run(packaged, release_params())
    said = refused(capsys, "promote", AWQ, "--", alias)
    assert "expected an alias in lower case" in said


def test_an_exported_file_is_imported_elsewhere_with_the_same_digests(
    published: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, again = tmp_path / "release.tar", tmp_path / "again.tar"
    for ref in (AWQ, GGUF):
        run(capsys, "export", ref, file)
        run(capsys, "export", ref, again)
        assert file.read_bytes() == again.read_bytes()
        place = f"oci:{tmp_path}/elsewhere"
        assert f"{place}:{ref}" in run(capsys, "import", file, place)
        run(capsys, "import", file, place)
        assert run(capsys, "show", f"{place}:{ref}") == run(capsys, "show", ref)
        run(capsys, "verify", f"{place}:{ref}")
    assert run(capsys, "ls", place) == run(capsys, "ls")


@pytest.mark.slow
def test_a_file_from_a_layout_is_imported_into_a_registry(
    packaged: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    publish.run(packaged, release_params())
    run(capsys, "export", GGUF, tmp_path / "release.tar")
    shown = run(capsys, "show", GGUF)
    with registry_server(tmp_path / "registry", login=True, tls=True) as server:
        docker_config(tmp_path / "docker", server.host, USER, PASSWORD)
        place = f"{server.url}/elsewhere/demo"
        run(capsys, "import", tmp_path / "release.tar", place)
        run(capsys, "verify", f"{place}:{GGUF}")
        assert run(capsys, "show", f"{place}:{GGUF}") == shown
        assert "1.2.3-q4_K_M" in run(capsys, "ls", place)


def test_skopeo_reads_an_exported_file(
    packaged: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    publish.run(packaged, release_params())
    file = tmp_path / "release.tar"
    run(capsys, "export", AWQ, file)
    command = [require_program("skopeo"), "inspect", "--raw", f"oci-archive:{file}:{AWQ}"]
    manifest = subprocess.run(command, check=True, capture_output=True).stdout
    digest = "sha256:" + sha256_hex(manifest)
    assert digest in run(capsys, "show", AWQ)


def test_missing_evidence_is_named(packaged: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    publish.run(packaged, release_params())
    index = packaged.registry_dir / "index.json"
    content = json.loads(index.read_bytes())
    content["manifests"] = [
        entry
        for entry in content["manifests"]
        if not entry["annotations"]["org.opencontainers.image.ref.name"].startswith("sha256-")
    ]
    index.write_text(json.dumps(content))
    assert "no bom and no provenance and no evaluation" in refused(capsys, "verify", AWQ)


EMPTY = bytes_blob(b"{}", BOM.media_type)


@pytest.mark.parametrize(
    ("content", "of_itself", "said"),
    [(b"{}", False, "evidence of another release"), (b"no json", True, "its bom is no JSON")],
)
def test_evidence_that_is_none_is_refused(
    packaged: Workspace,
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    of_itself: bool,
    said: str,
) -> None:
    publish.run(packaged, release_params())
    store = OciLayout(packaged.registry_dir, shown_as="artifacts/registry")
    stored = store.manifest(AWQ)
    assert stored is not None
    subject = stored.descriptor if of_itself else EMPTY.descriptor
    bom = bytes_blob(content, BOM.media_type)
    attach(store, stored.descriptor.digest, [new_evidence(subject, BOM, bom, "x.bom.json")])
    assert said in refused(capsys, "verify", AWQ)


def test_evidence_of_a_size_that_none_has_is_not_read(
    packaged: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    publish.run(packaged, release_params())
    store = OciLayout(packaged.registry_dir, shown_as="artifacts/registry")
    stored = store.manifest(AWQ)
    assert stored is not None
    huge = EMPTY.descriptor.model_copy(update={"size": 1 << 40})
    manifest = new_evidence(stored.descriptor, BOM, Blob(huge, b"{}"), "x.bom.json").manifest
    attach(store, stored.descriptor.digest, [NewEvidence(BOM, manifest, ())])
    assert "larger than any bom is" in refused(capsys, "verify", AWQ)


def test_too_many_referrers_are_not_read(
    packaged: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    publish.run(packaged, release_params())
    store = OciLayout(packaged.registry_dir, shown_as="artifacts/registry")
    stored = store.manifest(AWQ)
    assert stored is not None
    entries = tuple(
        EMPTY.descriptor.model_copy(update={"digest": f"sha256:{number:064x}"})
        for number in range(101)
    )
    index = EMPTY_INDEX.model_copy(update={"manifests": entries})
    tag = referrers_tag(stored.descriptor.digest)
    store.push_manifest(bytes_blob(index.to_bytes(), INDEX_TYPE), tag)
    assert "101 referrers, too many to read" in refused(capsys, "verify", AWQ)


def test_a_signature_is_checked_against_the_signers_key(
    packaged: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from model_signing.signing import Config

    openssl = require_program("openssl")
    for name in ("signer", "stranger"):
        key, public = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub"
        curve = ["-name", "prime256v1", "-genkey", "-noout", "-out", key]
        subprocess.run([openssl, "ecparam", *curve], check=True, capture_output=True)
        export = ["-in", key, "-pubout", "-out", public]
        subprocess.run([openssl, "ec", *export], check=True, capture_output=True)
    signature = packaged.packages_dir / "awq-w4-g128.signature.json"
    signer = Config().use_elliptic_key_signer(private_key=tmp_path / "signer.pem")
    publish.run(packaged, release_params())
    assert "signature: none" in run(capsys, "verify", AWQ)
    signer.sign(packaged.package_dir("awq-w4-g128"), signature)
    publish.run(packaged, release_params())  # the signature came later

    assert "there, not checked" in run(capsys, "verify", AWQ)
    said = run(capsys, "verify", AWQ, "--key", tmp_path / "signer.pub")
    assert f"signature: by the owner of {tmp_path}/signer.pub" in said
    said = refused(capsys, "verify", AWQ, "--key", tmp_path / "stranger.pub")
    assert "not a signature of these files" in said
    for name, reason in (("absent.pub", "no such file"), ("signer.pem", "public key in PEM")):
        assert reason in refused(capsys, "verify", AWQ, "--key", tmp_path / name)
    assert "no signature" in refused(capsys, "verify", GGUF, "--key", tmp_path / "signer.pub")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "9.9.9-none"), "no such release"),
        (("show", "a:b:c"), "expected TAG, HOST/REPOSITORY:TAG"),
        (("show", "https://host"), "expected TAG, HOST/REPOSITORY:TAG"),
        (("show", "oci:artifacts/registry"), "expected a tag or digest as well"),
        (("ls", AWQ), "names one release"),
        (("show", "oci:nowhere:tag"), "no such release"),
        (("import", "absent.tar"), "no such file"),
        (("show", "1.2.3-q4_K_M"), "expected a release of quantline"),
    ],
)
def test_a_wrong_reference_is_one_line(
    packaged: Workspace, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    publish.run(packaged, release_params())
    assert said in refused(capsys, *arguments)


def test_without_a_params_file_a_full_reference_is_enough(
    packaged: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    publish.run(packaged, release_params())
    packaged.params_path.unlink()
    run(capsys, "verify", f"oci:artifacts/registry:{AWQ}")
    assert "params.yaml: missing" in refused(capsys, "verify", AWQ)


def test_a_work_directory_of_a_killed_pull_is_continued(
    published: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The first half of the weights, as a killed pull leaves them beside the target."""
    target = tmp_path / "pulled"
    run(capsys, "pull", AWQ, "--to", "dir", "--into", target)
    digest = run(capsys, "show", AWQ).split("sha256:")[1][:16]
    weights = (target / "model.safetensors").read_bytes()
    name = file_sha256(target / "model.safetensors")
    shutil.rmtree(target)
    blobs = tmp_path / f"pulled.{digest}.partial" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{name}.download").write_bytes(weights[: len(weights) // 2])
    run(capsys, "pull", AWQ, "--to", "dir", "--into", target)
    assert (target / "model.safetensors").read_bytes() == weights
    assert not blobs.exists()
