"""publish against Debian's docker-registry, against a layout that skopeo reads, and killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from pipeline.core.errors import FailureError, InputError
from pipeline.core.files import file_sha256
from pipeline.core.record import sha256_hex
from pipeline.core.workspace import Workspace
from pipeline.oci.reference import LayoutPath
from pipeline.records.release import PackageIndex, Receipts
from pipeline.registry.places import open_place
from pipeline.stages import publish
from tests.registry_server import (
    PASSWORD,
    USER,
    Server,
    docker_config,
    registry_server,
    release_params,
    write_packages,
)
from tests.support import ROOT, require_program

pytestmark = pytest.mark.usefixtures("own_settings")
REPOSITORY = "quantline/demo"
TAG = "1.2.3-awq-w4-g128"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "workspace")
    write_packages(workspace, "awq-w4-g128", "gguf-q4-k-m")
    return workspace


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with registry_server(tmp_path / "registry") as server:
        yield server


def receipts(workspace: Workspace) -> Receipts:
    return Receipts.from_bytes(workspace.receipts_path.read_bytes(), source="receipts")


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def skopeo(*arguments: str | Path) -> str:
    program = require_program("skopeo")
    return subprocess.run(
        [program, "--insecure-policy", *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def pulled(server: Server, tag: str) -> tuple[bytes, dict[str, bytes]]:
    """Manifest and files of a release, read from the registry by its own digests."""
    base = f"{server.url}/v2/{REPOSITORY}"
    answer = requests.get(f"{base}/manifests/{tag}", headers={"Accept": MANIFEST_TYPE}, timeout=10)
    answer.raise_for_status()
    manifest = answer.json()
    files = {}
    for blob in (*manifest["layers"], manifest["config"]):
        data = requests.get(f"{base}/blobs/{blob['digest']}", timeout=10).content
        assert "sha256:" + sha256_hex(data) == blob["digest"]
        assert len(data) == blob["size"]
        files[blob.get("annotations", {}).get("org.cncf.model.filepath", "config")] = data
    return answer.content, files


def test_a_registry_holds_exactly_the_files_of_the_package(
    workspace: Workspace, server: Server
) -> None:
    publish.run(workspace, release_params(url=server.url))

    manifest, files = pulled(server, TAG)
    receipt = receipts(workspace).releases["awq-w4-g128"]
    config = json.loads(files.pop("config"))
    assert files == files_of(workspace.package_dir("awq-w4-g128"))
    assert receipt.manifest_digest == "sha256:" + sha256_hex(manifest)
    assert receipt.reference == f"{server.host}/{REPOSITORY}:{TAG}"
    assert {layer.path for layer in receipt.layers} == set(files)
    assert json.loads(manifest)["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert set(config) == {"descriptor", "config", "modelfs"}
    assert len(config["modelfs"]["diffIds"]) == len(files)


@pytest.mark.slow
def test_publishing_again_changes_nothing(workspace: Workspace, server: Server) -> None:
    publish.run(workspace, release_params(url=server.url))
    first, storage = workspace.receipts_path.read_bytes(), files_of(server.storage)
    publish.run(workspace, release_params(url=server.url))
    assert workspace.receipts_path.read_bytes() == first
    assert files_of(server.storage) == storage


def test_publishing_to_a_layout_again_changes_nothing(workspace: Workspace) -> None:
    publish.run(workspace, release_params())
    first, stored = workspace.receipts_path.read_bytes(), files_of(workspace.registry_dir)
    publish.run(workspace, release_params())
    assert workspace.receipts_path.read_bytes() == first
    assert files_of(workspace.registry_dir) == stored
    for path, data in stored.items():
        if path.startswith("blobs/"):
            assert path == f"blobs/sha256/{sha256_hex(data)}"


@pytest.mark.parametrize("damage", ["another byte", "gone"])
def test_publishing_to_a_layout_again_mends_every_blob(workspace: Workspace, damage: str) -> None:
    publish.run(workspace, release_params())
    stored = files_of(workspace.registry_dir)
    for name, data in stored.items():
        path = workspace.registry_dir / name
        if name.startswith("blobs/") and damage == "gone":
            path.unlink()
        elif name.startswith("blobs/") and data:
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    publish.run(workspace, release_params())
    assert files_of(workspace.registry_dir) == stored


def test_the_same_packages_have_the_same_digests_everywhere(
    workspace: Workspace, server: Server
) -> None:
    publish.run(workspace, release_params())
    on_disk = receipts(workspace)
    publish.run(workspace, release_params(url=server.url))
    on_server = receipts(workspace)
    assert {name: it.manifest_digest for name, it in on_disk.releases.items()} == {
        name: it.manifest_digest for name, it in on_server.releases.items()
    }


@pytest.mark.parametrize("where", ["layout", "server"])
def test_a_tag_never_moves_and_nothing_is_sent_before_all_are_checked(
    workspace: Workspace, server: Server, where: str
) -> None:
    params = release_params(url=server.url if where == "server" else None)
    write_packages(workspace, "gguf-q4-k-m")
    publish.run(workspace, params)
    stored = files_of(server.storage if where == "server" else workspace.registry_dir)

    write_packages(workspace, "awq-w4-g128", "gguf-q4-k-m", content=b"other weights")
    with pytest.raises(InputError, match=r"1\.2\.3-gguf-q4-k-m.*raise release\.version"):
        publish.run(workspace, params)
    assert files_of(server.storage if where == "server" else workspace.registry_dir) == stored


def test_a_tag_of_somebody_else_is_refused(workspace: Workspace, server: Server) -> None:
    publish.run(workspace, release_params(url=server.url))
    base = f"{server.url}/v2/{REPOSITORY}/manifests"
    manifest = requests.get(f"{base}/{TAG}", headers={"Accept": MANIFEST_TYPE}, timeout=10)
    foreign = manifest.content.replace(b"somebody", b"another ")
    requests.put(
        f"{base}/{TAG}", data=foreign, headers={"Content-Type": MANIFEST_TYPE}, timeout=10
    ).raise_for_status()
    with pytest.raises(InputError, match="tags never move"):
        publish.run(workspace, release_params(url=server.url))


def test_a_changed_package_is_refused(workspace: Workspace) -> None:
    weights = workspace.package_dir("awq-w4-g128") / "model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b"w", b"W"))
    with pytest.raises(InputError, match=r"model\.safetensors: not the bytes that were recor"):
        publish.run(workspace, release_params())
    assert open_place(workspace, LayoutPath(Path("artifacts/registry"))).tags() == ()


def test_a_shorter_package_is_refused_before_anything_is_sent(workspace: Workspace) -> None:
    (workspace.package_dir("awq-w4-g128") / "model.safetensors").write_bytes(b"w")
    with pytest.raises(InputError, match=r"model\.safetensors: missing or changed"):
        publish.run(workspace, release_params())
    assert not workspace.registry_dir.exists()


def test_two_variants_of_one_quantization_share_no_tag_of_ollama(workspace: Workspace) -> None:
    write_packages(workspace, "gguf-q4-k-m", "gguf-q4-k-m-plain")
    publish.run(workspace, release_params())
    releases = receipts(workspace).releases
    assert [it.ollama_tag for it in releases.values()] == ["1.2.3-q4_K_M", None]
    tags = open_place(workspace, LayoutPath(Path("artifacts/registry"))).tags()
    assert {it.tag for it in releases.values()} < set(tags)


@pytest.mark.parametrize("suffix", [".bom.json", ".provenance.json"])
def test_changed_evidence_is_refused(workspace: Workspace, suffix: str) -> None:
    path = workspace.packages_dir / f"awq-w4-g128{suffix}"
    path.write_bytes(path.read_bytes().replace(b"awq", b"gpt"))
    with pytest.raises(InputError, match=f"{suffix}: missing or changed since it was made"):
        publish.run(workspace, release_params())
    assert not workspace.registry_dir.exists()


def test_the_evaluation_has_to_be_the_one_that_approved(workspace: Workspace) -> None:
    workspace.evaluation_path("awq-w4-g128").write_bytes(b'{"score": 2}')
    with pytest.raises(InputError, match="not the one the package was made from"):
        publish.run(workspace, release_params())


def test_a_package_of_another_index_is_refused(workspace: Workspace) -> None:
    index = PackageIndex.from_bytes(workspace.packages_path.read_bytes(), source="packages")
    entry = index.packages[0].model_copy(update={"manifest_sha256": "0" * 64})
    workspace.packages_path.write_bytes(PackageIndex(packages=(entry,)).to_bytes())
    with pytest.raises(InputError, match=r"not the one that packages\.json names"):
        publish.run(workspace, release_params())


def test_nothing_packaged_publishes_nothing(workspace: Workspace) -> None:
    write_packages(workspace)
    publish.run(workspace, release_params())
    assert receipts(workspace).releases == {}


def test_without_packages_the_error_names_the_stage(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run `quantline package` first"):
        publish.run(Workspace(tmp_path), release_params())


@pytest.mark.slow
def test_the_right_login_publishes(
    workspace: Workspace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with registry_server(tmp_path / "registry", login=True) as server:
        docker_config(tmp_path / "docker", server.host, USER, PASSWORD)
        publish.run(workspace, release_params(url=server.url))
        answer = requests.get(
            f"{server.url}/v2/{REPOSITORY}/tags/list", auth=(USER, PASSWORD), timeout=10
        )
        versions = {tag for tag in answer.json()["tags"] if not tag.startswith("sha256-")}
        assert versions == {TAG, "1.2.3-gguf-q4-k-m", "1.2.3-q4_K_M"}
    written = workspace.receipts_path.read_text() + "".join(capfd.readouterr())
    assert PASSWORD not in written


def test_no_login_is_one_line(workspace: Workspace, tmp_path: Path) -> None:
    with (
        registry_server(tmp_path / "registry", login=True) as server,
        pytest.raises(FailureError, match="wants a login and there is none; run `docker login"),
    ):
        publish.run(workspace, release_params(url=server.url))


def test_a_wrong_password_is_one_line(workspace: Workspace, tmp_path: Path) -> None:
    with registry_server(tmp_path / "registry", login=True) as server:
        docker_config(tmp_path / "docker", server.host, USER, "wrong secret")
        with pytest.raises(FailureError, match=f"refuses the login of {USER}") as caught:
            publish.run(workspace, release_params(url=server.url))
    assert "wrong secret" not in str(caught.value)


def test_a_registry_that_is_down_is_one_line(workspace: Workspace) -> None:
    with pytest.raises(FailureError, match=r"127\.0\.0\.1:9 cannot be reached: connection refused"):
        publish.run(workspace, release_params(url="http://127.0.0.1:9"))


def test_skopeo_copies_the_layout_to_a_registry_and_back(
    workspace: Workspace, server: Server, tmp_path: Path
) -> None:
    publish.run(workspace, release_params())
    digest = receipts(workspace).releases["awq-w4-g128"].manifest_digest
    ours, remote = f"oci:{workspace.registry_dir}:{TAG}", f"docker://{server.host}/copy:{TAG}"
    back = tmp_path / "back"

    skopeo("copy", "--preserve-digests", "--dest-tls-verify=false", ours, remote)
    skopeo("copy", "--preserve-digests", "--src-tls-verify=false", remote, f"oci:{back}:{TAG}")

    assert skopeo("inspect", "--raw", ours) == skopeo(
        "inspect", "--raw", "--tls-verify=false", remote
    )
    manifest = back / "blobs" / digest.replace(":", "/")
    assert "sha256:" + file_sha256(manifest) == digest
    for blob in json.loads(manifest.read_bytes())["layers"]:
        assert (
            "sha256:" + file_sha256(back / "blobs" / blob["digest"].replace(":", "/"))
            == (blob["digest"])
        )


PUBLISH_PROGRAM = """
import sys
from pathlib import Path
from pipeline.core.workspace import Workspace
from pipeline.stages import publish
from tests.registry_server import release_params
publish.run(Workspace(Path(sys.argv[1])), release_params(url=sys.argv[2] or None))
print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


def start_publish(workspace: Workspace, url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PUBLISH_PROGRAM, str(workspace.root), url],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("where", ["layout", "server"])
def test_killed_in_the_middle_it_continues_and_ends_in_the_same_bytes(
    workspace: Workspace, server: Server, where: str
) -> None:
    """Killed as soon as the first blobs have arrived, with a large one on its way."""
    write_packages(workspace, "awq-w4-g128", "gguf-q4-k-m", content=bytes(200 << 20))
    url = server.url if where == "server" else ""
    storage = server.storage if where == "server" else workspace.registry_dir
    process = start_publish(workspace, url)
    deadline = time.monotonic() + 60
    while _stored_bytes(storage) < 20 << 20:
        assert time.monotonic() < deadline
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(0.002)  # between two looks
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not workspace.receipts_path.exists()

    process = start_publish(workspace, url)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert set(receipts(workspace).releases) == {"awq-w4-g128", "gguf-q4-k-m"}
    if where == "server":
        _, files = pulled(server, TAG)
        del files["config"]
        assert files == files_of(workspace.package_dir("awq-w4-g128"))
    else:
        for path in _files(storage / "blobs"):
            assert path.name == file_sha256(path)
    assert int(output.split()[1]) < 160 << 10, "kB of memory for a 200 MiB layer"


def _files(directory: Path) -> list[Path]:
    """All files below; directories that vanish meanwhile are passed over."""
    return [Path(where) / name for where, _, names in os.walk(directory) for name in names]


def _stored_bytes(directory: Path) -> int:
    total = 0
    for path in _files(directory):
        with suppress(FileNotFoundError):  # renamed since it was listed
            total += path.stat().st_size
    return total
