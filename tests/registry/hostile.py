"""A release to be damaged, a registry that lies about it, and the one line that refuses both."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.core.file_records import Digest
from tests.oci.fake_server import Answer, fake_server

TAG = "1.2.3-awq-w4-g128"
NAME = "org.cncf.model.filepath"
TITLE = "org.opencontainers.image.title"
Json = dict[str, Any]


@dataclass
class Stored:
    """A release as plain values, to be damaged; `blobs` by digest."""

    manifest: Json
    blobs: dict[str, bytes]

    def layer(self, name: str = "model.safetensors") -> Json:
        return next(
            layer for layer in self.manifest["layers"] if layer["annotations"][NAME] == name
        )

    def rename(self, name: str, *, layer: str = "model.safetensors") -> None:
        self.layer(layer)["annotations"] = {NAME: name, TITLE: name}

    def replace_blob(self, descriptor: Json, data: bytes) -> None:
        """Other bytes under a digest of their own."""
        self.blobs[Digest.of(data)] = data
        descriptor.update(digest=Digest.of(data), size=len(data))


@dataclass
class Liar:
    """A registry that serves a release; `changed` has other answers by the end of the path."""

    release: Stored
    manifest: bytes
    manifest_type: str = "application/vnd.oci.image.manifest.v1+json"
    changed: dict[str, Answer] = field(default_factory=dict)

    @property
    def weights(self) -> str:
        """The digest of the largest layer."""
        digest: str = self.release.layer()["digest"]
        return digest

    def lie(self, *, body: bytes | None = None, status: int = 200, **headers: str) -> None:
        """Answer so when somebody asks for the weights."""
        shown = {name.replace("_", "-"): value for name, value in headers.items()}
        data = self.release.blobs[self.weights] if body is None else body
        self.changed[self.weights] = Answer(status, shown, data)

    def answer(self, method: str, path: str) -> Answer:
        """What a request is answered."""
        name = path.rsplit("/", 1)[1]
        if name in self.changed:
            return self.changed[name]
        if "/manifests/" not in path:
            data = self.release.blobs.get(name)
            return Answer(404) if data is None else Answer(200, {}, data)
        if name.startswith("sha256-"):
            return Answer(404)
        return Answer(200, {"Content-Type": self.manifest_type}, self.manifest)


def liar_of(release: Stored) -> Liar:
    return Liar(release, json.dumps(release.manifest).encode())


def everything_below(directory: Path) -> set[Path]:
    return {path for path in directory.rglob("*") if "pytest" not in path.name}


@dataclass
class Shell:
    """Runs commands that may write below `tmp_path/target` and nowhere else."""

    tmp_path: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def target(self) -> Path:
        """Where commands write to."""
        return self.tmp_path / "target"

    def run(self, *command: str) -> tuple[int, list[str]]:
        """The exit code of a command, and the lines that name it."""
        before = everything_below(self.tmp_path)
        self.capsys.readouterr()
        code = main(list(command))
        error = self.capsys.readouterr().err
        written = everything_below(self.tmp_path) - before
        assert all(path.is_relative_to(self.target) for path in written), written
        name = f"quantline {command[0]}"
        return code, [line for line in error.splitlines() if line.startswith(name)]

    def refusal(self, *command: str) -> str:
        """The one line with which a command is refused."""
        code, lines = self.run(*command)
        assert code in (1, 2)
        assert len(lines) == 1
        return lines[0]

    def refused_pull(self, liar: Liar, name: str = f":{TAG}") -> str:
        """The one line with which a pull from `liar` is refused; nothing is pulled."""
        self.target.mkdir()
        pulled = self.target / "pulled"
        with fake_server(liar.answer) as server:
            ref = f"{server.host}/a/b{name}"
            line = self.refusal("pull", ref, "--to", "dir", "--into", str(pulled))
        assert not pulled.exists()
        return line
