"""Serve one GGUF file with llama.cpp's own HTTP server, until the process is ended.

It offers the OpenAI API (`/v1/completions`), `/health` and `/metrics` on 127.0.0.1, and serves
`--users` requests at the same time. llama.cpp reuses the cache of a slot for a prompt with the same
prefix. Before it serves, it prints one line of JSON with the version and the CPU features that this
build of llama.cpp uses.
"""

import argparse
import json
import signal
from importlib.metadata import version
from pathlib import Path

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve one GGUF file over HTTP.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--alias", required=True, help="the model's name in requests")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--users", type=int, required=True, help="requests at the same time")
    parser.add_argument("--context-tokens", type=int, required=True, help="of one request")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    facts = {"version": version("xllamacpp"), "system": xllamacpp.get_system_info().strip()}
    print(json.dumps(facts), flush=True)

    params = xllamacpp.CommonParams()
    params.model.path = str(arguments.model)
    params.model_alias = {arguments.alias}
    params.hostnames = ["127.0.0.1"]
    params.port = arguments.port
    params.n_parallel = arguments.users
    params.n_ctx = arguments.users * arguments.context_tokens
    params.kv_unified = False  # every user has context_tokens of their own
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = arguments.threads
    params.cache_ram_mib = 0
    params.endpoint_metrics = True
    params.ui = False
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
