"""`vllm bench serve` for several numbers of users in one process.

`python -m quantline_vllm.bench --users 1 8 --requests-per-user 3 ARGUMENTS OF vllm bench serve`

Importing vLLM takes longer than a short run of it, so that all numbers of users share one process;
each leaves `USERS.json` in `--result-dir`. The benchmark itself is vLLM's. (Its command line cannot
be used: it asks for the version of a distribution named `vllm`, and the CPU build has another
name.)

Every user sends one request before the measured ones. The number of users is the seed: two runs
send different prompts, and the same run sends the same ones to every server.
"""

import argparse
from copy import deepcopy

from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser


def run() -> None:
    own = argparse.ArgumentParser(description="Load a server and measure its latency.")
    own.add_argument("--users", type=int, nargs="+", required=True)
    own.add_argument("--requests-per-user", type=int, required=True)
    chosen, rest = own.parse_known_args()
    vllm_parser = FlexibleArgumentParser()
    add_cli_args(vllm_parser)
    arguments = vllm_parser.parse_args(rest)
    for users in chosen.users:
        load = deepcopy(arguments)
        load.max_concurrency = load.num_warmups = load.seed = users
        load.num_prompts = users * chosen.requests_per_user
        load.result_filename = f"{users}.json"
        main(load)


if __name__ == "__main__":
    run()
