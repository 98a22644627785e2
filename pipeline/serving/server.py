"""What serving with vLLM and with llama.cpp have in common: a server process and its answers.

A server runs from the serving environment as a process of its own, listens on 127.0.0.1, has no
network to use, and ends with the block that started it. How each engine is started is not here.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import requests

from pipeline.core.environments import HOST, OFFLINE, root_cause
from pipeline.core.errors import FailureError
from pipeline.core.process import Daemon, ending, free_port, last_lines, require_free_port
from pipeline.core.progress import note

SERVED_NAME = "model"
HEALTH_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 300.0

UNSUPPORTED = re.compile(
    r"unsupported|not (?:yet )?supported|no longer supported|does not support"
    r"|failed to find a kernel|unknown model architecture",
    re.IGNORECASE,
)


class ModelRefusedError(FailureError):
    """The engine says that it does not support this model; another try changes nothing."""


@dataclass(frozen=True)
class Server:
    """A server that answers. `startup_s` ran from its start to its first answer.

    `what` names it in messages, `model` in requests. `kv_cache_tokens` is the room for tokens that
    it says it has. `command` would start it again in the directory of its model, on an address of
    its own. `process` is None for a server that somebody else runs; `api_key` is its own.
    """

    what: str
    url: str
    engine: str
    engine_version: str
    kernel: str
    dtype: str
    command: tuple[str, ...]
    startup_s: float
    log_path: Path
    model: str = SERVED_NAME
    kv_cache_tokens: int | None = None
    process: Daemon | None = None
    api_key: str | None = field(default=None, repr=False)

    def complete(self, prompt: Sequence[int] | str, *, max_tokens: int) -> str:
        """The most likely text after `prompt`, token ids or text. Raises FailureError."""
        return complete(
            local_session(self.api_key), self.url, self.model, prompt, max_tokens=max_tokens
        )

    def explained(self, error: FailureError) -> FailureError:
        """`error`, or why the server ended if that is what it comes from."""
        if self.process is None or (code := self.process.exit_code()) is None:
            return error
        log = self.log_path.read_text(errors="replace")
        cause = root_cause(log) or last_lines(self.log_path)
        return FailureError(
            f"{self.what}: {ending(code)}: {cause} (the whole log: {self.log_path})"
        )


@dataclass(frozen=True)
class Started:
    """A process that has answered its first request; `log` is what it has printed so far."""

    url: str
    startup_s: float
    log: str
    process: Daemon


@contextmanager
def started(
    command: Sequence[str | Path],
    *,
    what: str,
    environment: Mapping[str, str],
    port: int,
    log_path: Path,
    timeout_s: float,
) -> Iterator[Started]:
    """A server process that has answered one request; it ends with the block.

    Raises ModelRefusedError when the engine does not support the model, FailureError with the
    reason from its log when it dies, answers wrongly or needs more than `timeout_s`.
    """
    url = f"http://{HOST}:{port}"
    session = local_session()
    began = time.monotonic()
    note(f"{what}: starting")
    with (
        TemporaryDirectory() as scratch_dir,
        Daemon(
            command,
            log_path=log_path,
            environment={**OFFLINE, **environment, "TMPDIR": scratch_dir},
        ) as process,
    ):
        try:
            process.wait_until(lambda: is_healthy(session, url), timeout_s=timeout_s, what=what)
            # Some refusals only show when the model runs for the first time.
            complete(session, url, SERVED_NAME, [1, 2], max_tokens=2)
        except FailureError as error:
            raise problem(what, log_path, error) from error
        startup_s = time.monotonic() - began
        note(f"{what}: answers after {startup_s:.0f} s")
        log = log_path.read_text(errors="replace")
        yield Started(url=url, startup_s=startup_s, log=log, process=process)


def chosen_port(port: int | None) -> int:
    """`port`, or a free one for None. Raises InputError when it is taken."""
    if port is None:
        return free_port()
    require_free_port(port)
    return port


def local_session(api_key: str | None = None) -> requests.Session:
    """A session that ignores proxies and the credentials of this user."""
    session = requests.Session()
    session.trust_env = False
    if api_key is not None:
        session.headers["Authorization"] = f"Bearer {api_key}"
    return session


def complete(
    session: requests.Session,
    url: str,
    model: str,
    prompt: Sequence[int] | str,
    *,
    max_tokens: int,
) -> str:
    """Greedy completion through the OpenAI API. Raises FailureError for anything but a text."""
    body = {
        "model": model,
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    try:
        response = session.post(
            f"{url}/v1/completions", json=body, timeout=REQUEST_TIMEOUT_S, allow_redirects=False
        )
        response.raise_for_status()
        text = response.json()["choices"][0]["text"]
    except (requests.RequestException, ValueError, LookupError, TypeError) as error:
        raise FailureError(f"{url}: no completion: {error}") from error
    if not isinstance(text, str):
        raise FailureError(f"{url}: expected a text, got {text!r:.80}")
    return text


def problem(what: str, log_path: Path, error: FailureError) -> FailureError:
    """The first error a server's log names, which caused the others; `error` if it names none."""
    cause = root_cause(log_path.read_text(errors="replace"))
    if cause is None:
        return FailureError(f"{error} (the whole log: {log_path})")
    if UNSUPPORTED.search(cause):
        return ModelRefusedError(cause)
    return FailureError(f"{what}: {cause} (the whole log: {log_path})")


def is_healthy(session: requests.Session, url: str) -> bool:
    """Whether `url`/health answers well."""
    try:
        return session.get(f"{url}/health", timeout=HEALTH_TIMEOUT_S).ok
    except requests.RequestException:
        return False
