"""Serving a GGUF file with llama.cpp's own HTTP server, from the serving environment."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.environments import SERVE_PYTHON, installed_distribution
from pipeline.core.machine import usable_cores
from pipeline.serving.server import (
    SERVED_NAME,
    Server,
    chosen_port,
    started,
)

ENGINE = "llama.cpp"
DISTRIBUTION = "xllamacpp"
FACTS = re.compile(r'^\{"version": .*"system": .*\}$', re.MULTILINE)
UNKNOWN = "unknown"


@contextmanager
def serve(
    model_path: Path,
    *,
    name: str,
    file_type: str,
    context_tokens: int,
    users: int,
    port: int | None,
    timeout_s: float,
    log_path: Path,
) -> Iterator[Server]:
    """Serve one GGUF file of `file_type` for a `with` block, with a context for each of `users`.

    One core is left to the load generator and the HTTP side, as vLLM does: threads that share a
    core with them spin while they wait for each other. Raises what `server.started`
    raises, and InputError for a port that is taken or a serving environment that is not there.
    """
    what = f"llama.cpp with {name}"
    engine = installed_distribution(DISTRIBUTION)
    number = chosen_port(port)
    command: list[str | Path] = [
        SERVE_PYTHON,
        "-m",
        "quantline_vllm.llama_server",
        model_path,
        f"--alias={SERVED_NAME}",
        f"--port={number}",
        f"--users={users}",
        f"--context-tokens={context_tokens}",
        f"--threads={max(1, usable_cores() - 1)}",
    ]
    with started(
        command,
        what=what,
        environment={},
        port=number,
        log_path=log_path,
        timeout_s=timeout_s,
    ) as process:
        yield Server(
            what=what,
            url=process.url,
            engine=ENGINE,
            engine_version=f"{DISTRIBUTION} {engine.version}",
            kernel=kernel_of(process.log),
            dtype=file_type,
            command=(
                "llama-server",
                f"--model={model_path.name}",
                f"--ctx-size={users * context_tokens}",
                f"--parallel={users}",
            ),
            startup_s=process.startup_s,
            log_path=log_path,
            kv_cache_tokens=users * context_tokens,
            process=process.process,
        )


def kernel_of(log: str) -> str:
    """Read the CPU features that this build of llama.cpp uses from a line our launcher prints.

    Libraries may print warnings before that line. `unknown` when the log has no such line.
    """
    facts = FACTS.search(log)
    if facts is None:
        return UNKNOWN
    system: str = json.loads(facts[0])["system"]
    device, _, features = system.partition(":")
    assignments = (part.partition("=") for part in features.split("|"))
    used = [name.strip() for name, _, value in assignments if value.strip() == "1"]
    return f"{device.strip()}: {' '.join(used)}"
