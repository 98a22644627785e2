"""A server of the user's own that speaks OpenAI's API, such as SGLang, TGI, Ollama or vLLM.

It is measured as it is: only its owner knows its precision and its memory. A command that starts it
must find its port free. A server that runs already is left running.
"""

import os
import shlex
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import requests

from pipeline.core.errors import FailureError, InputError
from pipeline.core.process import Daemon
from pipeline.core.progress import note
from pipeline.params.serving import Endpoint
from pipeline.serving.server import Server, complete, local_session, problem

ENGINE = "endpoint"
UNKNOWN = "unknown"
PORTS = {"http": 80, "https": 443}
PROBE_TIMEOUT_S = 5.0
TRIAL_PROMPT = "Hello"


@contextmanager
def serve(name: str, endpoint: Endpoint, *, timeout_s: float, log_path: Path) -> Iterator[Server]:
    """Give the server of `endpoint` after its first answer; end it if it was started here.

    Raises FailureError, and InputError for a key that is not set or a port that is taken.
    """
    what = f"endpoint {name}"
    require_usable(name, endpoint)
    began = time.monotonic()
    server = Server(
        what=what,
        url=endpoint.url,
        engine=ENGINE,
        engine_version=endpoint.url,
        kernel=UNKNOWN,
        dtype=UNKNOWN,
        command=endpoint.command or (),
        startup_s=0.0,
        log_path=log_path,
        model=endpoint.model,
        api_key=_api_key(name, endpoint),
    )
    if endpoint.command is None:
        server.complete(TRIAL_PROMPT, max_tokens=2)
        yield server
        return
    note(f"{what}: starting {shlex.join(endpoint.command)}")
    with Daemon(endpoint.command, log_path=log_path, environment={}) as process:
        session = local_session(server.api_key)
        try:
            process.wait_until(
                lambda: _lists_models(session, endpoint.url), timeout_s=timeout_s, what=what
            )
            complete(session, endpoint.url, endpoint.model, TRIAL_PROMPT, max_tokens=2)
        except FailureError as error:
            raise problem(what, log_path, error) from error
        yield replace(server, process=process, startup_s=time.monotonic() - began)


def require_usable(name: str, endpoint: Endpoint) -> None:
    """Raise InputError for a key that is not set, or a command whose port is taken."""
    _api_key(name, endpoint)
    if endpoint.command is not None:
        _require_nobody(name, endpoint)


def _api_key(name: str, endpoint: Endpoint) -> str | None:
    if endpoint.api_key_variable is None:
        return None
    key = os.environ.get(endpoint.api_key_variable)
    if not key:
        raise InputError(
            f"serve.endpoints.{name}.api_key_variable = {endpoint.api_key_variable}: not set; "
            "export it, or set it to null for a server without a key"
        )
    return key


def _require_nobody(name: str, endpoint: Endpoint) -> None:
    """Refuse a command whose port answers already: its answers would be another server's."""
    parts = urlsplit(endpoint.url)
    address = (parts.hostname or "", parts.port or PORTS[parts.scheme])
    with socket.socket() as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        if probe.connect_ex(address) == 0:
            raise InputError(
                f"serve.endpoints.{name}.url = {endpoint.url}: the port is taken by another "
                "program; end it, or set command to null to measure it"
            )


def _lists_models(session: requests.Session, url: str) -> bool:
    try:
        return session.get(f"{url}/v1/models", timeout=PROBE_TIMEOUT_S).ok
    except requests.RequestException:
        return False
