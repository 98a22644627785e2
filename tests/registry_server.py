"""Debian's docker-registry as a real process, and packages to publish to it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from pipeline.core.file_records import FileRecord
from pipeline.core.files import directory_records, file_record, file_sha256, write_record
from pipeline.core.process import Daemon, free_port, run_program
from pipeline.core.record import sha256_hex
from pipeline.core.workspace import Workspace
from pipeline.params.params import Audience, Params
from pipeline.params.reading import read_params
from pipeline.records.release import (
    BaseReference,
    CalibrationReference,
    PackageEntry,
    PackageIndex,
    PackageManifest,
    ReleaseLicense,
)
from tests.support import ROOT, require_program

USER, PASSWORD = "releaser", "correct horse: battery"
REPOSITORY = "quantline/demo"
READY_TIMEOUT_S = 30
EVALUATION = b'{"score": 1}'
MODELFILE = """FROM ./model.gguf
REQUIRES 0.30.0
PARAMETER num_ctx 1024
PARAMETER stop "<|end|>"
LICENSE \"\"\"Permission is hereby granted.\"\"\"
"""


@dataclass(frozen=True)
class Server:
    url: str
    storage: Path
    log_path: Path

    @property
    def host(self) -> str:
        return self.url.split("://")[1]


@contextmanager
def registry_server(
    directory: Path, *, login: bool = False, tls: bool = False, auth: str = ""
) -> Iterator[Server]:
    """A registry that keeps its blobs in `directory`; `auth` is YAML of another login scheme.

    With `tls`, this process trusts its certificate authority as long as it runs.
    """
    program = require_program("docker-registry")
    port = free_port()
    directory.mkdir(parents=True, exist_ok=True)
    if login:
        auth = f"auth: {{htpasswd: {{realm: test, path: {htpasswd_file(directory)}}}}}"
    certificate = private_certificate(directory) if tls else None
    shown_tls = f", tls: {{certificate: {certificate}, key: {directory / 'key.pem'}}}"
    config = directory / "config.yml"
    config.write_text(
        "version: 0.1\n"
        f"storage: {{filesystem: {{rootdirectory: {directory / 'storage'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'{shown_tls if tls else ''}}}\n{auth}\n"
    )
    url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    log_path = directory / "registry.log"
    with (
        pytest.MonkeyPatch.context() as patch,
        Daemon([program, "serve", config], log_path=log_path, environment={}) as daemon,
    ):
        if certificate:
            patch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        daemon.wait_until(lambda: _answers(url), timeout_s=READY_TIMEOUT_S, what="docker-registry")
        yield Server(url, directory / "storage", log_path)


def htpasswd_file(directory: Path) -> Path:
    """A password file that lets USER in with PASSWORD."""
    path = directory / "htpasswd"
    run_program(
        [require_program("htpasswd"), "-Bbc", path, USER, PASSWORD],
        log_path=directory / "htpasswd.log",
        environment={},
    )
    return path


def private_certificate(directory: Path) -> Path:
    """A certificate for 127.0.0.1 that is its own authority; its key is `key.pem` beside it."""
    certificate = directory / "certificate.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files: list[str | Path] = ["-keyout", directory / "key.pem", "-out", certificate]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    run_program(
        [require_program("openssl"), "req", *kind, "-days", "2", *names, *files],
        log_path=directory / "openssl.log",
        environment={},
    )
    return certificate


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/v2/", timeout=5).status_code in (200, 401)
    except requests.ConnectionError:
        return False


def docker_config(directory: Path, host: str, username: str, password: str) -> None:
    """What `docker login` leaves behind; the caller points DOCKER_CONFIG to `directory`."""
    directory.mkdir(exist_ok=True)
    encoded = requests.auth._basic_auth_str(username, password).removeprefix("Basic ")
    (directory / "config.json").write_text(json.dumps({"auths": {host: {"auth": encoded}}}))


def release_params(*, url: str | None = None, repository: str = REPOSITORY) -> Params:
    """The parameters of the repository, with another registry."""
    params = read_params(ROOT / "params.yaml")
    registry = params.registry.model_copy(update={"url": url, "repository": repository})
    return params.model_copy(update={"registry": registry})


def use_registry(workspace: Workspace, url: str | None, repository: str = REPOSITORY) -> None:
    """A params.yaml that says where releases are and nothing else."""
    section = {"registry": {"url": url, "repository": repository}}
    workspace.params_path.write_text(json.dumps(section))


def write_packages(workspace: Workspace, *variants: str, content: bytes = b"weights") -> None:
    """Packages of small files with their evidence and evaluation, and their index."""
    entries = []
    for variant in variants:
        directory = workspace.package_dir(variant)
        directory.mkdir(parents=True, exist_ok=True)
        is_gguf = variant.startswith("gguf")
        weights = "model.gguf" if is_gguf else "model.safetensors"
        (directory / weights).write_bytes(content + variant.encode())
        if is_gguf:
            (directory / "Modelfile").write_text(MODELFILE)
        (directory / "tokenizer").mkdir(exist_ok=True)
        (directory / "tokenizer" / "vocab é.json").write_bytes(b"{}")
        (directory / "empty.txt").write_bytes(b"")
        (directory / "LICENSE").write_bytes(b"Permission is hereby granted.\n")
        (directory / "README.md").write_bytes(b"# a model\n")
        workspace.evaluation_path(variant).parent.mkdir(parents=True, exist_ok=True)
        workspace.evaluation_path(variant).write_bytes(EVALUATION)
        (directory / "manifest.json").unlink(missing_ok=True)
        write_record(directory / "manifest.json", package_manifest(directory, variant))
        entries.append(
            PackageEntry(
                variant=variant,
                manifest_sha256=file_sha256(directory / "manifest.json"),
                evidence=tuple(write_evidence(workspace, variant)),
                num_files=6,
                size_bytes=1,
            )
        )
    write_record(workspace.packages_path, PackageIndex(packages=tuple(entries)))


def write_evidence(workspace: Workspace, variant: str) -> Iterator[FileRecord]:
    """The files beside a package; their content means nothing here."""
    for suffix in (".bom.json", ".provenance.json"):
        path = workspace.packages_dir / (variant + suffix)
        path.write_text(f'{{"of": "{variant}", "is": "{suffix}"}}')
        yield file_record(path, workspace.packages_dir)
    signature = workspace.packages_dir / f"{variant}.signature.json"
    if signature.exists():
        yield file_record(signature, workspace.packages_dir)


def package_manifest(directory: Path, variant: str) -> PackageManifest:
    digest = "ab" * 32
    is_gguf = variant.startswith("gguf")
    return PackageManifest(
        name="tiny",
        version="1.2.3",
        variant=variant,
        format="gguf" if is_gguf else "awq",
        quantization="Q4_K_M" if is_gguf else "awq",
        quantizer="quantline 0.1.0",
        bits_per_weight=4.25,
        num_parameters=3_140_000,
        model_type="llama",
        languages=("en", "es"),
        quantized_by="somebody",
        audience=Audience.PUBLIC,
        commercial=True,
        license=ReleaseLicense(
            id="mit",
            name="MIT License",
            expression="MIT",
            link=None,
            text_sha256=digest,
            display_text=None,
            notice_text=None,
            use_policy_url=None,
            conditions=(),
        ),
        calibration=CalibrationReference(
            name="text.jsonl", license="MIT", conditions=(), text_sha256=digest
        ),
        base=BaseReference(name="org/tiny", revision="0" * 40, digest=digest),
        statistics_digest=digest,
        variant_digest=digest,
        evaluation_sha256=sha256_hex(EVALUATION),
        signing_key_sha256=None,
        files=directory_records(directory),
    )
