"""The command line: one subcommand for each stage of the graph, and verbs for operators.

It reads and checks the parameters, calls one of them with its arguments, and turns every
QuantlineError into one line and its exit code (1 failure, 2 bad input, 3 nothing approved). Nothing
else catches them.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from keyword import iskeyword
from pathlib import Path

from pipeline.adapters.system_errors import readable_system_errors
from pipeline.adapters.workspace import read_workspace
from pipeline.domain.errors import QuantlineError
from pipeline.domain.layout import Layout

INTERRUPTED_EXIT_CODE = 130

# Idle threads of torch sleep instead of spinning: on a machine that does anything else as well,
# spinning costs several times what it saves. Read once, when a stage loads torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@dataclass(frozen=True)
class Argument:
    """One argument of a subcommand; a name with dashes is an option.

    A `repeated` one may be given several times over, and is handed over value by value.
    """

    name: str
    help: str
    choices: tuple[str, ...] | None = None
    required: bool = True
    repeated: bool = False


@dataclass(frozen=True)
class Command:
    """A subcommand; `reads_params` for those that need the whole of params.yaml."""

    summary: str
    arguments: tuple[Argument, ...] = ()
    reads_params: bool = True


VARIANT = Argument("name", "a key of `variants` in params.yaml")
EVALUATED = Argument("names", f"{VARIANT.help}, or `base`; several share a run", repeated=True)

STAGES = {
    "fetch": Command("get the pinned base checkpoint and verify every file"),
    "calibrate": Command("measure the second moments of every linear input"),
    "quantize": Command("make one variant", (VARIANT,)),
    "evaluate": Command("score the base or variants", (EVALUATED,)),
    "select": Command("decide which variants may be released"),
    "benchmark": Command("serve the approved variants and the base under load"),
    "package": Command("make a self-contained directory of each approved variant"),
    "publish": Command("push the packages to the registry"),
    "report": Command("write the report"),
}

REF = Argument(
    "ref", "TAG, HOST/REPOSITORY:TAG or oci:DIRECTORY:TAG; @sha256:... may stand for :TAG"
)
PLACE = Argument(
    "place", "HOST/REPOSITORY or oci:DIRECTORY; without it, the one of params.yaml", required=False
)
FILE = Argument("file", "a tar file")

# What an operator asks beside the graph: `pipeline.verbs` has a module for each. Those for releases
# read no more of params.yaml than where the registry is, where a reference does not say it.
VERBS = {
    "plan": Command("predict memory, disk and time of a run, and refuse one that cannot fit"),
    "explain": Command("say why a variant got its verdict", (VARIANT,)),
    "ls": Command("list releases and aliases", (PLACE,), reads_params=False),
    "show": Command("describe a release, or an alias and its history", (REF,), reads_params=False),
    "verify": Command(
        "check digests, license, evidence and signature of a release",
        (
            REF,
            Argument("--key", "the signer's public key (PEM)", required=False),
            Argument("--identity", "who signed without a key, such as an address", required=False),
            Argument("--issuer", "the URL that vouches for the identity", required=False),
            Argument("--trusted-root", "Sigstore's, from a file (JSON)", required=False),
        ),
        reads_params=False,
    ),
    "pull": Command(
        "bring a release to this machine",
        (
            REF,
            Argument("--to", "what it is for", choices=("vllm", "ollama", "dir")),
            Argument("--into", "the directory; else a new one, or OLLAMA_MODELS", required=False),
        ),
        reads_params=False,
    ),
    "promote": Command(
        "point an alias at a release",
        (REF, Argument("alias", "such as latest or prod")),
        reads_params=False,
    ),
    "rollback": Command(
        "point an alias at what it stood for before",
        (Argument("alias", "such as prod, or HOST/REPOSITORY:prod"),),
        reads_params=False,
    ),
    "record": Command("tag the current commit with the published version", reads_params=False),
    "export": Command("write a release and its evidence into one file", (REF, FILE), False),
    "import": Command("publish the releases of such a file", (FILE, PLACE), False),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand in the current directory; returns the exit code."""
    chosen = _parser().parse_args(arguments)
    # Being told to end is like Ctrl-C: what this process started ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    layout = Layout(Path.cwd())
    try:
        package = "stages" if chosen.command in STAGES else "verbs"
        suffix = "_" if iskeyword(chosen.command) else ""
        module = import_module(f"pipeline.{package}.{chosen.command}{suffix}")
        command = (STAGES | VERBS)[chosen.command]
        given = {key: value for key, value in vars(chosen).items() if key != "command"}
        repeated = [it for one in command.arguments if one.repeated for it in given.pop(one.name)]
        with readable_system_errors():
            if command.reads_params:
                module.run(layout, read_workspace(layout), *repeated, **given)
            else:
                module.run(layout, *repeated, **given)
    except QuantlineError as error:
        print(f"quantline {chosen.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        again = "interrupted; run the same command to go on"
        print(f"quantline {chosen.command}: {again}", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quantline",
        description="From one FP16 language model to quantized releases that people can trust.",
        epilog="`dvc repro` runs all of them in order and redoes only what has changed.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in (STAGES | VERBS).items():
        subparser = commands.add_parser(name, help=command.summary, description=command.summary)
        for argument in command.arguments:
            _add(subparser, argument)
    return parser


def _add(parser: argparse.ArgumentParser, argument: Argument) -> None:
    if argument.name.startswith("--"):
        parser.add_argument(
            argument.name,
            help=argument.help,
            choices=argument.choices,
            required=argument.required,
        )
    else:
        nargs = "+" if argument.repeated else None if argument.required else "?"
        parser.add_argument(argument.name, help=argument.help, nargs=nargs)


if __name__ == "__main__":
    sys.exit(main())
