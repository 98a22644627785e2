"""A server process: what its log says, how it ends, what a user reads when it does not start."""

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from pipeline.core.environments import installed_distribution, root_cause
from pipeline.core.errors import FailureError, InputError
from pipeline.serving.server import ModelRefusedError, Server, chosen_port, launch, problem

VLLM_LOG = """\
(APIServer pid=7) WARNING 11-21 13:19:17 [system_utils.py:255] Found ulimit of 20000 and failed with error x. This can cause fd limit errors like `OSError: [Errno 24] Too many open files`.
(Worker pid=9) ERROR 11-21 13:19:48 [multiproc_executor.py:1063] Traceback (most recent call last):
(Worker pid=9) ERROR 11-21 13:19:48 [multiproc_executor.py:1063] RuntimeError: Unsupported CPU attention configuration: head_dim=16 isa=2
(EngineCore pid=8) ERROR 11-21 13:19:48 [core.py:1512] RuntimeError: Worker failed with error 'Unsupported', please check the stack trace above
(APIServer pid=7) ERROR 11-21 13:19:48 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.
"""  # noqa: E501 - as vLLM prints it


PYDANTIC_LOG = """\
pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig
  Value error, torch.float32 is not supported for quantization method awq. [type=value_error, input_value=ArgsKwargs((), {'model_c...}), input_type=ArgsKwargs]
    For further information visit https://errors.pydantic.dev/2.13/v/value_error
"""  # noqa: E501


def start(directory: Path, program: str, *, timeout_s: float = 20.0) -> None:
    """Wait for a server that is only this Python program."""
    port = chosen_port(None)
    url = f"http://127.0.0.1:{port}"
    server = Server("the server", url, "none", "0", (), directory / "server.log")
    command = [sys.executable, "-c", program, str(port)]
    with launch(server, command, environment={}, timeout_s=timeout_s) as answer:
        answer.result()


def test_the_first_error_of_a_log_is_its_cause() -> None:
    cause = "RuntimeError: Unsupported CPU attention configuration: head_dim=16 isa=2"
    assert root_cause(VLLM_LOG) == cause
    assert root_cause("a.b.SomeError: reason \n later: OtherError: no") == "SomeError: reason"
    assert root_cause(PYDANTIC_LOG) == (
        "Value error: torch.float32 is not supported for quantization method awq."
    )
    assert root_cause("INFO all is well: 3 errors avoided") is None


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        (VLLM_LOG, ModelRefusedError),
        ("ValueError: Model architectures ['X'] are not supported for now.", ModelRefusedError),
        ("ValueError: Failed to find a kernel that can implement it", ModelRefusedError),
        ("SafetensorError: Error while deserializing header: incomplete metadata", FailureError),
        ("Killed", FailureError),
    ],
)
def test_only_what_the_engine_does_not_support_is_a_refusal(
    tmp_path: Path, log: str, kind: type[FailureError]
) -> None:
    log_path = tmp_path / "log"
    log_path.write_text(log)
    error = problem("vLLM with base", log_path, FailureError("vLLM with base: died"))
    assert type(error) is kind
    assert "\n" not in str(error)


def test_a_server_that_dies_gives_its_reason_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(FailureError, match=r"the server: ValueError: no such weights") as caught:
        start(tmp_path, "raise ValueError('no such weights')")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up_and_ended(tmp_path: Path) -> None:
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    with pytest.raises(FailureError, match="the server: not ready after 2 s"):
        start(tmp_path, program, timeout_s=2.0)
    pid = int((tmp_path / "server.log").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_block_that_ends_before_the_first_answer_ends_the_server(tmp_path: Path) -> None:
    server = Server("the server", "http://127.0.0.1:9", "none", "0", (), tmp_path / "log")
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    began = time.monotonic()
    with launch(server, command, environment={}, timeout_s=600) as answer:
        pass
    assert time.monotonic() - began < 15
    with pytest.raises(FailureError, match="was ended by SIGTERM"):
        answer.result()


def test_a_server_that_answers_nonsense_fails(tmp_path: Path) -> None:
    program = (
        "import http.server, sys\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers()\n"
        "    def do_POST(self):\n"
        "        self.send_response(200); self.end_headers(); self.wfile.write(b'[]')\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()\n"
    )
    began = time.monotonic()
    with pytest.raises(FailureError, match="no completion"):
        start(tmp_path, program)
    assert time.monotonic() - began < 15


def test_a_port_that_is_taken_is_refused_before_anything_starts() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"serve.port = {port}: taken"):
            chosen_port(port)
    assert chosen_port(port) == port


def test_a_package_that_is_not_installed_names_the_remedy() -> None:
    with pytest.raises(InputError, match=r"no-such-engine is not installed; run `make setup`"):
        installed_distribution("no-such-engine")
