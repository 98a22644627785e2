"""Serving a checkpoint directory with vLLM, from its own environment.

The server is vLLM's own. quantline's plugin adds 4-bit kernels on CPUs where vLLM has none, and
starts the server faster on two cores (`quantline_vllm.server`). The model's own sampling defaults
are off, so that the same request means the same for every model. vLLM caches prefixes by default;
no load sends a prompt twice.
"""

import re
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from pipeline.core.environments import (
    ENVIRONMENT,
    HOST,
    OFFLINE,
    SERVE_PYTHON,
    VLLM_FOR_CPU,
    installed_vllm,
)
from pipeline.serving.server import SERVED_NAME, UNKNOWN, Server, chosen_port, launch

ENGINE = "vllm"
ENTRY_POINT = ("-m", "vllm.entrypoints.launchers.api_server.entry")
CPU_LAUNCHER = ("-m", "quantline_vllm.server")
OWN_KERNEL = re.compile(r"quantline: (.+ kernel), (\w+), (\d+) layers")
VLLM_KERNEL = re.compile(r"Using (\w+) for mixed-precision linear")
UNQUANTIZED = re.compile(r"Initializing a V1 LLM engine .*\bquantization=None\b")
ENGINE_DTYPE = re.compile(r"Initializing a V1 LLM engine .*\bdtype=torch\.(\w+)")
KV_CACHE = re.compile(r"KV cache size: ([\d,]+) tokens")
AUTO_DTYPE = "auto"
DENSE_KERNEL = "dense"


def serve(
    model_dir: Path,
    *,
    name: str,
    context_tokens: int,
    kv_cache_bytes: int,
    port: int | None,
    timeout_s: float,
    log_path: Path,
    dtype: str = AUTO_DTYPE,
) -> AbstractContextManager[Future[Server]]:
    """Serve the checkpoint in `model_dir` for a `with` block; `name` is for messages.

    `context_tokens` is the length of the longest request. The Future raises what that of
    `server.launch` does. Raises InputError for a port that is taken or a serving environment that
    is not there.
    """
    engine = installed_vllm()
    port = chosen_port(port)
    options = [
        f"--max-model-len={context_tokens}",
        f"--kv-cache-memory-bytes={kv_cache_bytes}",
        f"--dtype={dtype}",
        "--generation-config=vllm",
    ]
    launcher = ENTRY_POINT
    if engine.metadata["Name"] == VLLM_FOR_CPU:
        launcher = CPU_LAUNCHER
        # Compiling graphs takes a C++ compiler and minutes, and gains little on a CPU.
        options.append("--enforce-eager")
    server = Server(
        what=f"vLLM with {name}",
        url=f"http://{HOST}:{port}",
        engine=ENGINE,
        engine_version=engine.version,
        command=("python", *ENTRY_POINT, "--model=.", *options),
        log_path=log_path,
    )
    command: list[str | Path] = [
        SERVE_PYTHON,
        *launcher,
        f"--model={model_dir}",
        *options,
        f"--served-model-name={SERVED_NAME}",
        f"--host={HOST}",
        f"--port={port}",
        "--disable-uvicorn-access-log",
    ]
    return launch(
        server,
        command,
        environment=OFFLINE | ENVIRONMENT,
        timeout_s=timeout_s,
        read_log=described_by_log,
    )


def described_by_log(server: Server, log: str) -> Server:
    """Add the kernel, the type of the activations and the room of the KV cache."""
    return replace(
        server,
        kernel=kernel_of(log),
        dtype=dtype_of(log),
        kv_cache_tokens=kv_cache_tokens_of(log),
    )


def kernel_of(log: str) -> str:
    """Read from the server's log which kernel multiplies the weights.

    `dense` when the log says that nothing is quantized, `unknown` when it names no known kernel.
    """
    own = [f"{label}, {dtype}, {count} layers" for label, dtype, count in OWN_KERNEL.findall(log)]
    kernels = "; ".join(dict.fromkeys(own or VLLM_KERNEL.findall(log)))
    return kernels or (DENSE_KERNEL if UNQUANTIZED.search(log) else UNKNOWN)


def dtype_of(log: str) -> str:
    """Read from the server's log the type of the activations."""
    found = ENGINE_DTYPE.search(log)
    return found[1] if found else UNKNOWN


def kv_cache_tokens_of(log: str) -> int | None:
    """Read from the server's log how many tokens fit into the KV cache."""
    found = KV_CACHE.search(log)
    return int(found[1].replace(",", "")) if found else None
