"""`ollama pull` from a plain registry behind the nginx configuration that comes with quantline."""

import json
import shutil
from pathlib import Path

import pytest
import requests

from pipeline.cli import main
from pipeline.core.process import run_program
from pipeline.core.workspace import Workspace
from pipeline.stages import publish
from tests import ollama_client
from tests.nginx_server import nginx_server
from tests.registry_server import (
    PASSWORD,
    USER,
    docker_config,
    registry_server,
    release_params,
)
from tests.support import require_program

pytestmark = pytest.mark.slow  # each starts nginx in front of a registry

MODEL, TAG = "quantline/demo", "1.2.3-q4_K_M"


def test_every_blob_arrives_and_nothing_is_written_without_a_login(
    packaged: Workspace, tmp_path: Path
) -> None:
    with nginx_server(tmp_path / "server") as server:
        docker_config(tmp_path / "docker", server.host, USER, PASSWORD)
        publish.run(packaged, release_params(url=server.url))

        blobs = ollama_client.pull(server.url, MODEL, TAG)
        assert blobs.keys() == {"model", "license", "params", "v1+json"}
        package = packaged.package_dir("gguf-q4-k-m")
        assert blobs["model"] == [(package / "model.gguf").read_bytes()]
        assert json.loads(blobs["params"][0]) == {"num_ctx": 1024, "stop": ["<|end|>"]}

        for method in ("POST", "PUT", "PATCH", "DELETE"):
            url = f"{server.url}/v2/{MODEL}/manifests/{TAG}"
            answer = requests.request(method, url, data=b"{}", timeout=10)
            assert answer.status_code == 401, method
        ref = f"{server.url}/{MODEL}:1.2.3-gguf-q4-k-m"
        assert main(["verify", ref]) == 0


def test_another_network_has_to_log_in_to_read(packaged: Workspace, tmp_path: Path) -> None:
    with nginx_server(tmp_path / "server", readers="192.0.2.0/24") as server:
        docker_config(tmp_path / "docker", server.host, USER, PASSWORD)
        publish.run(packaged, release_params(url=server.url))
        with pytest.raises(ollama_client.PullError, match="manifest: 401"):
            ollama_client.pull(server.url, MODEL, TAG)
        ref = f"{server.url}/{MODEL}:1.2.3-gguf-q4-k-m"
        assert main(["verify", ref]) == 0
        docker_config(tmp_path / "docker", server.host, USER, "wrong")
        assert main(["verify", ref]) == 1


def test_other_clients_log_in_to_write_from_a_network_that_reads_without(
    packaged: Workspace, tmp_path: Path
) -> None:
    publish.run(packaged, release_params())
    with nginx_server(tmp_path / "server") as server:
        certificates = tmp_path / "certificates"
        certificates.mkdir()
        shutil.copy(tmp_path / "server" / "certificate.pem", certificates / "ca.crt")
        ref = f"{server.host}/{MODEL}:1.2.3-gguf-q4-k-m"
        ours = f"oci:{packaged.registry_dir}:1.2.3-gguf-q4-k-m"
        trust = ("--dest-cert-dir", certificates, "--dest-creds", f"{USER}:{PASSWORD}")
        run_program(
            [
                require_program("skopeo"),
                "--insecure-policy",
                "copy",
                *trust,
                ours,
                f"docker://{ref}",
            ],
            log_path=tmp_path / "skopeo.log",
            environment={},
        )
        assert main(["show", f"https://{ref}"]) == 0


def test_without_nginx_a_plain_registry_lacks_the_location(
    packaged: Workspace, tmp_path: Path
) -> None:
    """If this fails one day, the configuration is no longer needed."""
    with registry_server(tmp_path / "server") as server:
        publish.run(packaged, release_params(url=server.url))
        with pytest.raises(ollama_client.PullError, match="no Location header"):
            ollama_client.pull(server.url, MODEL, TAG)
