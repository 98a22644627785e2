"""The command line: one subcommand for each stage of the graph, and verbs for operators.

It reads and checks the parameters, calls one of them, and turns every QuantlineError into one line
and its exit code (1 failure, 2 bad input, 3 nothing approved). Nothing else catches them.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from pipeline.adapters.workspace import read_workspace
from pipeline.domain.errors import QuantlineError
from pipeline.domain.layout import Layout

INTERRUPTED_EXIT_CODE = 130

# Idle threads of torch sleep instead of spinning: on a machine that does anything else as well,
# spinning costs several times what it saves. Read once, when a stage loads torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@dataclass(frozen=True)
class Stage:
    """A subcommand; `takes_name` for the stages that run once for each variant.

    One that `takes_more` may be given several names, and then loads what they share once.
    """

    summary: str
    takes_name: bool = False
    takes_more: bool = False


STAGES = {
    "fetch": Stage("get the pinned base checkpoint and verify every file"),
    "calibrate": Stage("measure the second moments of every linear input"),
    "quantize": Stage("make one variant", takes_name=True),
    "evaluate": Stage("score the base or variants", takes_name=True, takes_more=True),
    "select": Stage("decide which variants may be released"),
    "benchmark": Stage("serve the approved variants and the base under load"),
    "package": Stage("make a self-contained directory of each approved variant"),
    "publish": Stage("push the packages to the registry"),
    "report": Stage("write the report"),
}

# What an operator asks beside the graph: `pipeline.verbs` has a module for each.
VERBS = {
    "plan": Stage("predict memory, disk and time of a run, and refuse one that cannot fit"),
    "explain": Stage("say why a variant got its verdict", takes_name=True),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand in the current directory; returns the exit code."""
    chosen = _parser().parse_args(arguments)
    # Being told to end is like Ctrl-C: what this process started ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    layout = Layout(Path.cwd())
    try:
        params = read_workspace(layout)
        package = "stages" if chosen.stage in STAGES else "verbs"
        stage = import_module(f"pipeline.{package}.{chosen.stage}")
        if (STAGES | VERBS)[chosen.stage].takes_name:
            stage.run(layout, params, *chosen.name)
        else:
            stage.run(layout, params)
    except QuantlineError as error:
        print(f"quantline {chosen.stage}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            f"quantline {chosen.stage}: interrupted; run the same command to go on", file=sys.stderr
        )
        return INTERRUPTED_EXIT_CODE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quantline",
        description="From one FP16 language model to quantized releases that people can trust.",
        epilog="`dvc repro` runs all of them in order and redoes only what has changed.",
    )
    commands = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name, stage in (STAGES | VERBS).items():
        command = commands.add_parser(name, help=stage.summary, description=stage.summary)
        if stage.takes_name:
            command.add_argument(
                "name",
                nargs="+" if stage.takes_more else 1,
                help="a key of `variants` in params.yaml, or `base`",
            )
    return parser


if __name__ == "__main__":
    sys.exit(main())
