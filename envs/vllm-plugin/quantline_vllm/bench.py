"""Run `vllm bench serve` as a small HTTP service, so that one process runs load after load.

`python -m quantline_vllm.bench --port PORT` takes `POST /` with a JSON list of arguments of `vllm
bench serve`, and answers with the figures of that load, one load at a time. `GET /health` tells
that it runs. The service exists because importing vLLM takes longer than a short load, and a
benchmark has many of them. The benchmark itself is vLLM's. Its command line cannot be used: it asks
for the version of a distribution named `vllm`, and the CPU build has another name.

These figures are added: `client_cpu_share`, the share of one core that this process used while
requests were running; `energy_j`, the energy of the machine in this time; `first_error`.

llama.cpp reports the number of tokens with the last piece of text. vLLM's client does not read it
there, and would count the tokens of the text again, with another result. The end of text is
ignored, so that every complete answer has exactly the requested number of tokens, which is used.
"""

import argparse
import asyncio
import json
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import aiohttp
from tqdm.asyncio import tqdm
from vllm.benchmarks.lib.endpoint_request_func import (
    ASYNC_REQUEST_FUNCS,
    RequestFuncInput,
    RequestFuncOutput,
    async_request_openai_completions,
)
from vllm.benchmarks.serve import add_cli_args, main_async
from vllm.utils.argparse_utils import FlexibleArgumentParser

from quantline_vllm.energy import Counter, counters

HOST = "127.0.0.1"
BACKEND = "openai"


class Span:
    """Measure CPU time and energy from the first request of a load to its last answer."""

    def __init__(self, energy: list[Counter]) -> None:
        self._energy = energy
        self._began: tuple[float, float, list[float]] | None = None
        self._share = 0.0
        self._energy_j: float | None = None

    def request_begins(self) -> None:
        """Start the measurement at the first request."""
        if self._began is None:
            joules = [counter.read_j() for counter in self._energy]
            self._began = time.process_time(), time.perf_counter(), joules

    def request_ends(self) -> None:
        """Update the figures; the last call is that of the last answer."""
        assert self._began is not None
        cpu_s, began_s, joules = self._began
        self._share = (time.process_time() - cpu_s) / (time.perf_counter() - began_s)
        if self._energy:
            used = (counter.since(then) for counter, then in zip(self._energy, joules, strict=True))
            self._energy_j = sum(used)

    def figures(self) -> dict[str, float | None]:
        """Return the share of one core, and joules; None without counters."""
        return {"client_cpu_share": self._share, "energy_j": self._energy_j}


class LoadService(HTTPServer):
    """Run loads, one after the other."""

    def __init__(self, port: int) -> None:
        super().__init__((HOST, port), Loads)
        self._parser = FlexibleArgumentParser()
        add_cli_args(self._parser)
        self._energy = counters()

    def run_load(self, arguments: list[str]) -> dict[str, Any]:
        """Run a load by the arguments of `vllm bench serve`; return its figures."""
        span = Span(self._energy)

        async def complete(
            request: RequestFuncInput, session: aiohttp.ClientSession, pbar: tqdm | None = None
        ) -> RequestFuncOutput:
            """Send vLLM's request to `/v1/completions`; count tokens where it does not."""
            span.request_begins()
            output = await async_request_openai_completions(request, session, pbar)
            span.request_ends()
            if output.success and not output.output_tokens:
                output.output_tokens = request.output_len
            return output

        ASYNC_REQUEST_FUNCS[BACKEND] = lambda request_func_input, session, pbar=None: complete(
            request_func_input, session, pbar
        )
        fixed = [f"--backend={BACKEND}", "--ignore-eos", "--save-detailed", "--disable-tqdm"]
        result = asyncio.run(main_async(self._parser.parse_args([*fixed, *arguments])))
        errors = [error for error in result["errors"] if error]
        figures = {key: value for key, value in result.items() if isinstance(value, (int, float))}
        return figures | span.figures() | {"first_error": errors[0] if errors else None}


class Loads(BaseHTTPRequestHandler):
    """Answer the requests for loads."""

    server: LoadService

    def do_GET(self) -> None:
        self._answer(200, {})

    def do_POST(self) -> None:
        arguments = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            self._answer(200, self.server.run_load(arguments))
        except Exception as error:
            self._answer(500, {"error": f"{type(error).__name__}: {error}"})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run loads on servers, on request.")
    parser.add_argument("--port", type=int, required=True)
    LoadService(parser.parse_args().port).serve_forever()
