"""A server process and its answers, for vLLM and llama.cpp alike.

A server runs from the serving environment as a process of its own, listens on 127.0.0.1, is told to
stay offline, and ends with the block that launched it. Several can start side by side: a block
begins when the process does, and a Future has the server after its first answer. `vllm` and
`llama_cpp` launch the engines.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import requests

from pipeline.core.environments import root_cause
from pipeline.core.errors import FailureError
from pipeline.core.process import Daemon, exit_text, free_port, last_lines, require_free_port
from pipeline.core.progress import note
from pipeline.serving.sampling import greedy_sampling

SERVED_NAME = "model"
UNKNOWN = "unknown"
HEALTH_PATH = "/health"
HEALTH_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 300.0

UNSUPPORTED = re.compile(
    r"unsupported|not (?:yet )?supported|no longer supported|does not support"
    r"|failed to find a kernel|unknown model architecture",
    re.IGNORECASE,
)


class ModelRefusedError(FailureError):
    """Say that the engine does not support this model; another try changes nothing."""


@dataclass(frozen=True)
class Server:
    """Describe a server.

    `what` names the server in messages, `model` names the model in requests. `command` starts the
    same server in the directory of its model. `kv_cache_tokens` is the number of tokens that the
    server says it has room for. `startup_s` is the time from its start to its first answer.
    `process` is None for a server that somebody else runs; `api_key` is that server's key.
    """

    what: str
    url: str
    engine: str
    engine_version: str
    command: tuple[str, ...]
    log_path: Path
    kernel: str = UNKNOWN
    dtype: str = UNKNOWN
    kv_cache_tokens: int | None = None
    model: str = SERVED_NAME
    startup_s: float = 0.0
    process: Daemon | None = None
    api_key: str | None = field(default=None, repr=False)

    def complete(self, prompt: Sequence[int] | str, *, max_tokens: int) -> str:
        """Return the most likely text after `prompt`, token ids or text, by the OpenAI API.

        Raises FailureError for anything but a text.
        """
        body = {
            "model": self.model,
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "max_tokens": max_tokens,
            **greedy_sampling(self.engine),
        }
        try:
            response = local_session(self.api_key).post(
                f"{self.url}/v1/completions",
                json=body,
                timeout=REQUEST_TIMEOUT_S,
                allow_redirects=False,
            )
            response.raise_for_status()
            text = response.json()["choices"][0]["text"]
        except (requests.RequestException, ValueError, LookupError, TypeError) as error:
            raise FailureError(f"{self.url}: no completion: {error}") from error
        if not isinstance(text, str):
            raise FailureError(f"{self.url}: expected a text, got {text!r:.80}")
        return text

    def explained(self, error: FailureError) -> FailureError:
        """Return the reason why the server ended; `error` itself while the server runs."""
        if self.process is None or (code := self.process.exit_code()) is None:
            return error
        log = self.log_path.read_text(errors="replace")
        cause = root_cause(log) or last_lines(self.log_path)
        return FailureError(
            f"{self.what}: {exit_text(code)}: {cause} (the whole log: {self.log_path})"
        )


@contextmanager
def launch(
    server: Server,
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    timeout_s: float,
    health_path: str = HEALTH_PATH,
    prompt: Sequence[int] | str = (1, 2),
    read_log: Callable[[Server, str], Server] = lambda server, _: server,
) -> Iterator[Future[Server]]:
    """Start the process of `server` for a `with` block; the Future has it after its first answer.

    It answers when `health_path` is there and `prompt` gets a text. `read_log` adds what the engine
    says about itself in its log. The Future raises ModelRefusedError when the engine does not
    support the model, FailureError with the reason from the log when the process dies, answers
    wrongly or needs more than `timeout_s`.
    """
    began = time.monotonic()
    session = local_session(server.api_key)

    def wait_for_answer() -> Server:
        try:
            process.wait_until(
                lambda: is_healthy(session, server.url, path=health_path),
                timeout_s=timeout_s,
                what=server.what,
            )
            # Some refusals only show when the model runs for the first time.
            server.complete(prompt, max_tokens=2)
        except FailureError as error:
            raise problem(server.what, server.log_path, error) from error
        startup_s = time.monotonic() - began
        note(f"{server.what}: answers after {startup_s:.0f} s")
        log = server.log_path.read_text(errors="replace")
        return read_log(replace(server, process=process, startup_s=startup_s), log)

    note(f"{server.what}: starting")
    with (
        TemporaryDirectory() as scratch_dir,
        ThreadPoolExecutor(max_workers=1) as waiting,  # its thread ends soon after the process
        Daemon(
            command,
            log_path=server.log_path,
            environment={**environment, "TMPDIR": scratch_dir},
        ) as process,
    ):
        yield waiting.submit(wait_for_answer)


def chosen_port(port: int | None) -> int:
    """Return `port`, or a free one for None. Raises InputError when `port` is taken."""
    if port is None:
        return free_port()
    require_free_port(port)
    return port


def local_session(api_key: str | None = None) -> requests.Session:
    """Open a session that ignores the proxies and credentials of this user."""
    session = requests.Session()
    session.trust_env = False
    if api_key is not None:
        session.headers["Authorization"] = f"Bearer {api_key}"
    return session


def problem(what: str, log_path: Path, error: FailureError) -> FailureError:
    """Return the first error of a server's log, which caused the others; else `error`."""
    cause = root_cause(log_path.read_text(errors="replace"))
    if cause is None:
        return FailureError(f"{error} (the whole log: {log_path})")
    if UNSUPPORTED.search(cause):
        return ModelRefusedError(cause)
    return FailureError(f"{what}: {cause} (the whole log: {log_path})")


def is_healthy(session: requests.Session, url: str, *, path: str = HEALTH_PATH) -> bool:
    """Tell whether a server answers a GET of `path` without an error."""
    try:
        return session.get(f"{url}{path}", timeout=HEALTH_TIMEOUT_S).ok
    except requests.RequestException:
        return False
