"""A release's whole life in a registry: Debian's docker-registry, and any other one of yours.

`QUANTLINE_REGISTRY=URL` adds a registry, such as Zot's or Harbor's: the login that Docker's
configuration has for it may push, under names that nobody uses, and nothing is deleted there.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from pipeline.core.file_records import Digest
from pipeline.core.files import directory_records
from pipeline.core.workspace import Workspace
from pipeline.stages import publish
from tests.commands import AWQ, GGUF, run
from tests.registry_server import registry_server, release_params, use_registry
from tests.support import require_program

OTHER = os.environ.get("QUANTLINE_REGISTRY")
LOGINS = os.environ.get("DOCKER_CONFIG", str(Path.home() / ".docker"))


@pytest.fixture(params=["docker-registry", *filter(None, [OTHER])])
def place(
    tmp_path: Path,
    packaged: Workspace,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[str]:
    """URL/REPOSITORY of a registry that params.yaml names."""
    repository = f"quantline/{uuid4().hex}"
    if request.param == OTHER:
        monkeypatch.setenv("DOCKER_CONFIG", LOGINS)
        use_registry(packaged, OTHER, repository)
        yield f"{OTHER}/{repository}"
        return
    with registry_server(tmp_path / "registry") as server:
        use_registry(packaged, server.url, repository)
        yield f"{server.url}/{repository}"


@pytest.mark.slow
def test_a_release_lives_in_a_registry(
    packaged: Workspace, place: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    url, _, repository = place.rpartition("/quantline/")
    params = release_params(url=url, repository=f"quantline/{repository}")
    publish.run(packaged, params)
    first = packaged.receipts_path.read_bytes()
    publish.run(packaged, params)
    assert packaged.receipts_path.read_bytes() == first

    assert [line.split()[0] for line in run(capsys, "ls").splitlines()] == [
        AWQ,
        GGUF,
        "1.2.3-q4_K_M",
    ]
    for tag, variant in ((AWQ, "awq-w4-g128"), (GGUF, "gguf-q4-k-m")):
        assert "evidence: bom, evaluation, provenance" in run(capsys, "verify", tag)
        run(capsys, "pull", tag, "--to", "dir", "--into", tmp_path / tag)
        assert directory_records(tmp_path / tag) == directory_records(packaged.package_dir(variant))

    run(capsys, "promote", AWQ, "prod")
    run(capsys, "promote", GGUF, "prod")
    assert "gguf-q4-k-m" in run(capsys, "show", "prod")
    run(capsys, "rollback", "prod")
    assert "awq-w4-g128" in run(capsys, "show", "prod")

    run(capsys, "export", GGUF, tmp_path / "release.tar")
    run(capsys, "import", tmp_path / "release.tar", f"{place}-again")
    assert run(capsys, "show", f"{place}-again:{GGUF}") == run(capsys, "show", GGUF)
    run(capsys, "verify", f"{place}-again:{GGUF}")


@pytest.mark.slow
def test_skopeo_copies_between_a_registry_and_a_layout(
    packaged: Workspace, place: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Into the registry and back, with the same digest, and our own commands read both."""
    publish.run(packaged, release_params())
    host = place.partition("://")[2]
    there, back = f"docker://{host}:{AWQ}", f"oci:{tmp_path}/back:{AWQ}"
    copy = ("copy", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false")
    skopeo(*copy, f"oci:{packaged.registry_dir}:{AWQ}", there)
    skopeo(*copy, there, back)
    digest = Digest.of(skopeo("inspect", "--raw", "--tls-verify=false", there))
    for ref in (f"oci:{packaged.registry_dir}:{AWQ}", f"{place}:{AWQ}", back):
        assert digest in run(capsys, "show", ref)


def skopeo(*arguments: str) -> bytes:
    command = [require_program("skopeo"), "--insecure-policy", *arguments]
    return subprocess.run(command, check=True, capture_output=True).stdout
