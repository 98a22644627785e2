"""What tests share: programs and data that may be absent, and where to find them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import HTTPServer
from pathlib import Path
from threading import Thread
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parent.parent
STOP_POLL_S = 0.01  # how soon a server of the standard library sees that it has to stop


def missing(reason: str) -> NoReturn:
    """Skip the test and say why; in CI, where everything is installed, fail instead."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"missing in CI: {reason}")
    pytest.skip(reason)


def require_program(name: str) -> str:
    """The path of an outside program."""
    path = shutil.which(name)
    if path is None:
        missing(f"the program {name} is not installed")
    return path


def serve_python() -> Path:
    """The Python of the serving environment."""
    python = ROOT / ".venv-serve" / "bin" / "python"
    if not python.exists():
        missing("the serving environment is not set up: run `make setup`")
    return python


def shared_dir() -> Path:
    """The directory of shared test data beside the repository; may be absent."""
    shared = ROOT.parent / "shared"
    if not shared.is_dir():
        pytest.skip("no ../shared beside the repository")
    return shared


@contextmanager
def answering(server: HTTPServer) -> Iterator[str]:
    """Let a server answer until the block ends; gives its `host:port`."""
    thread = Thread(target=server.serve_forever, args=(STOP_POLL_S,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
