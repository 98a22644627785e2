"""A server of the user's own that speaks OpenAI's API, such as SGLang, TGI, Ollama or vLLM.

Its precision and memory are not known here and stand in no result. A command of the parameters
starts it, on a port that must be free, and then it ends with the benchmark. A server without a
command runs already and goes on running.
"""

import os
import socket
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.core.errors import FailureError, InputError
from pipeline.params.serving import Endpoint
from pipeline.serving.server import Server, launch

ENGINE = "endpoint"
PORTS = {"http": 80, "https": 443}
PROBE_TIMEOUT_S = 5.0
MODELS_PATH = "/v1/models"
TRIAL_PROMPT = "Hello"


@contextmanager
def serve(
    name: str, endpoint: Endpoint, *, timeout_s: float, log_path: Path
) -> Iterator[Future[Server]]:
    """Start the command of `endpoint`, if it has one, for a `with` block.

    The Future has the server after its first answer; it raises FailureError. Raises InputError for
    a key that is not set or a port that is taken.
    """
    require_usable(name, endpoint)
    server = Server(
        what=f"endpoint {name}",
        url=endpoint.url,
        engine=ENGINE,
        engine_version=endpoint.url,
        command=endpoint.command or (),
        log_path=log_path,
        model=endpoint.model,
        api_key=_api_key(name, endpoint),
    )
    if endpoint.command is not None:
        with launch(
            server,
            endpoint.command,
            environment={},
            timeout_s=timeout_s,
            health_path=MODELS_PATH,
            prompt=TRIAL_PROMPT,
        ) as answer:
            yield answer
        return
    answer = Future[Server]()
    try:
        server.complete(TRIAL_PROMPT, max_tokens=2)
        answer.set_result(server)
    except FailureError as error:
        answer.set_exception(error)
    yield answer


def require_usable(name: str, endpoint: Endpoint) -> None:
    """Raise InputError for a key that is not set, or a command whose port is taken."""
    _api_key(name, endpoint)
    if endpoint.command is not None:
        _require_free_port(name, endpoint)


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


def _require_free_port(name: str, endpoint: Endpoint) -> None:
    """Raise InputError where the port of a command answers: another program would be measured."""
    parts = urlsplit(endpoint.url)
    address = (parts.hostname or "", parts.port or PORTS[parts.scheme])
    with socket.socket() as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        if probe.connect_ex(address) == 0:
            raise InputError(
                f"serve.endpoints.{name}.url = {endpoint.url}: the port is taken by another "
                "program; end it, or set command to null to measure it"
            )
