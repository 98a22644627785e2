"""Ctrl-C in a transfer: it ends in a moment, whatever the registry is doing."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.core.files import file_sha256
from pipeline.core.workspace import Workspace
from pipeline.oci.layout import OciLayout
from pipeline.stages import publish
from tests.commands import AWQ, run
from tests.registry_server import release_params
from tests.support import ROOT, answering

INTERRUPTED_PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests
from pipeline.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["import", "pull"])
def test_ctrl_c_ends_a_transfer_that_waits_for_the_registry(
    packaged: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str
) -> None:
    """Every blob of `import`, and the weights of `pull`, wait for an answer that never comes."""
    publish.run(packaged, release_params())
    run(capsys, "export", AWQ, tmp_path / "release.tar")
    with silent_registry(packaged) as (place, waits):
        arguments = {
            "import": ["import", str(tmp_path / "release.tar"), place],
            "pull": ["pull", f"{place}:{AWQ}", "--to", "dir", "--into", str(tmp_path / "pulled")],
        }[verb]
        with subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED_PROGRAM, *arguments],
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            text=True,
        ) as process:
            try:
                assert waits.wait(60)
                began = time.monotonic()
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=10)
                took_s = time.monotonic() - began
            finally:
                process.kill()
    assert process.returncode == 130
    assert took_s < 3
    assert said.splitlines()[-1:] == [
        f"quantline {verb}: interrupted; run the same command to go on"
    ]
    assert "Traceback" not in said
    assert not (tmp_path / "pulled").exists()


@contextmanager
def silent_registry(workspace: Workspace) -> Iterator[tuple[str, threading.Event]]:
    """A registry that has the releases of a layout and never answers where it is about bytes.

    It says nothing to a PUT, and stops after the first bytes of the weights. The event is set when
    somebody waits for it.
    """
    waits, over = threading.Event(), threading.Event()
    store = OciLayout(workspace.registry_dir, shown_as="x")
    weights = "sha256:" + file_sha256(workspace.package_dir("awq-w4-g128") / "model.safetensors")

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            kind, name = self.path.partition("?")[0].split("/")[-2:]
            if self.command == "POST":
                self.answer(202, b"", Location="/v2/a/b/blobs/uploads/1")
            elif self.command == "PUT":
                waits.set()
                over.wait(60)
            elif kind == "referrers" or "/elsewhere/" in self.path:
                self.answer(404, b"")
            elif kind == "manifests":
                stored = store.manifest(name)
                assert stored is not None
                self.answer(200, stored.data, Content_Type=stored.descriptor.media_type)
            else:
                path = workspace.registry_dir / "blobs" / name.replace(":", "/")
                self.answer(200, path.read_bytes(), stop=name == weights)

        do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

        def answer(self, status: int, body: bytes, *, stop: bool = False, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[:1] if stop else body)
            if stop:
                waits.set()
                over.wait(60)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with answering(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as host:
        try:
            yield f"http://{host}/a/b", waits
        finally:
            over.set()
