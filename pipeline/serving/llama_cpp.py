"""Serving a GGUF file with llama.cpp's own HTTP server, from the serving environment."""

import json
import re
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from pipeline.core.environments import HOST, OFFLINE, SERVE_PYTHON, installed_distribution
from pipeline.core.machine import usable_cores
from pipeline.serving.server import SERVED_NAME, UNKNOWN, Server, chosen_port, launch

ENGINE = "llama.cpp"
DISTRIBUTION = "xllamacpp"
FACTS = re.compile(r'^\{"version": .*"system": .*\}$', re.MULTILINE)


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
) -> AbstractContextManager[Future[Server]]:
    """Serve one GGUF file of `file_type` for a `with` block, with a context for each of `users`.

    One core is left to the load generator and the HTTP side, as vLLM does: threads that share a
    core with them spin while they wait for each other. The Future raises what that of
    `server.launch` does. Raises InputError for a port that is taken or a serving environment that
    is not there.
    """
    engine = installed_distribution(DISTRIBUTION)
    port = chosen_port(port)
    server = Server(
        what=f"llama.cpp with {name}",
        url=f"http://{HOST}:{port}",
        engine=ENGINE,
        engine_version=f"{DISTRIBUTION} {engine.version}",
        dtype=file_type,
        command=(
            "llama-server",
            f"--model={model_path.name}",
            f"--ctx-size={users * context_tokens}",
            f"--parallel={users}",
        ),
        log_path=log_path,
        kv_cache_tokens=users * context_tokens,
    )
    command: list[str | Path] = [
        SERVE_PYTHON,
        "-m",
        "quantline_vllm.llama_server",
        model_path,
        f"--alias={SERVED_NAME}",
        f"--port={port}",
        f"--users={users}",
        f"--context-tokens={context_tokens}",
        f"--threads={max(1, usable_cores() - 1)}",
    ]
    return launch(
        server,
        command,
        environment=OFFLINE,
        timeout_s=timeout_s,
        read_log=lambda server, log: replace(server, kernel=kernel_of(log)),
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
