"""`vllm bench serve` for several numbers of users in one process.

`python -m quantline_vllm.bench --users 1 8 --requests-per-user 3 ARGUMENTS OF vllm bench serve`

Importing vLLM takes longer than a short run of it, so that all numbers of users share one process;
each leaves `USERS.json` in `--result-dir`. The benchmark itself is vLLM's. (Its command line cannot
be used: it asks for the version of a distribution named `vllm`, and the CPU build has another
name.)

llama.cpp reports the number of tokens together with the last piece of text, where vLLM's client
does not look; it would count the tokens of the text again and get another number. The end of text
is ignored, so that every complete answer has exactly the tokens asked for: that number is used.

Every user sends one request before the measured ones. The number of users is the seed: two runs
send different prompts, and the same run sends the same ones to every server.
"""

import argparse
from copy import deepcopy

import aiohttp
from tqdm.asyncio import tqdm
from vllm.benchmarks.lib.endpoint_request_func import (
    ASYNC_REQUEST_FUNCS,
    RequestFuncInput,
    RequestFuncOutput,
    async_request_openai_completions,
)
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

BACKEND = "openai"


async def complete(
    request_func_input: RequestFuncInput,
    session: aiohttp.ClientSession,
    pbar: tqdm | None = None,
) -> RequestFuncOutput:
    """vLLM's request to `/v1/completions`, with the number of tokens where it was not found."""
    output = await async_request_openai_completions(request_func_input, session, pbar)
    if output.success and not output.output_tokens:
        output.output_tokens = request_func_input.output_len
    return output


def run() -> None:
    own = argparse.ArgumentParser(description="Load a server and measure its latency.")
    own.add_argument("--users", type=int, nargs="+", required=True)
    own.add_argument("--requests-per-user", type=int, required=True)
    chosen, rest = own.parse_known_args()
    vllm_parser = FlexibleArgumentParser()
    add_cli_args(vllm_parser)
    arguments = vllm_parser.parse_args([f"--backend={BACKEND}", "--ignore-eos", *rest])
    ASYNC_REQUEST_FUNCS[BACKEND] = complete
    for users in chosen.users:
        load = deepcopy(arguments)
        load.max_concurrency = load.num_warmups = load.seed = users
        load.num_prompts = users * chosen.requests_per_user
        load.result_filename = f"{users}.json"
        main(load)


if __name__ == "__main__":
    run()
