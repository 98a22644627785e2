"""Define the Typer application: its headings, its options before a command, and its errors.

Every QuantlineError and every wrong usage becomes one line on standard error and an exit code
(1 failure, 2 bad input, 3 nothing approved, 130 interrupted). No other code catches them. The
commands are in `pipeline.commands`.
"""

import re
import sys
from collections.abc import Callable, Sequence
from contextlib import chdir
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from pipeline.core.errors import (
    INTERRUPTED,
    INTERRUPTED_EXIT_CODE,
    InputError,
    QuantlineError,
    one_line,
    printable,
)

PROGRAM: Final = "quantline"
USAGE_EXIT_CODE: Final = 2

STAGES: Final = "Stages, in the order in which `dvc repro` runs them"
BESIDE_THE_GRAPH: Final = "Before and after a run"
RELEASES: Final = "Releases, without a pipeline"

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., None])


class Command(TyperCommand):
    """Show the help of a command with examples at its end, which are its epilog."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Show a required argument as `REF`, an optional one as `[REF]`."""
        return [re.sub("[{}]", "", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """List arguments without their Python types, then options."""
        for heading, kind in (("Arguments", TyperArgument), ("Options", TyperOption)):
            params = [param for param in self.get_params(ctx) if isinstance(param, kind)]
            records = [record for param in params if (record := param.get_help_record(ctx))]
            if kind is TyperArgument:
                records = [(name.partition(" <")[0], text) for name, text in records]
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        formatter.write(f"\nExamples:\n{self.epilog}\n")


class CommandGroups(TyperGroup):
    """List the commands under their headings, and turn the error of a command into one line."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(len(name) for name in self.commands)
        for heading in (STAGES, BESIDE_THE_GRAPH, RELEASES):
            with formatter.section(heading):
                formatter.write_dl(
                    (name.ljust(width), (command.help or "").partition("\n")[0].rstrip("."))
                    for name, command in self.commands.items()
                    if isinstance(command, Command) and command.rich_help_panel == heading
                )

    def invoke(self, ctx: Any) -> None:
        # Imported here, because help and completion do not need it.
        from pipeline.core.system_errors import readable_system_errors

        try:
            with readable_system_errors():
                super().invoke(ctx)
        except typer.TyperException as error:
            raise _StoppedError(_usage_message(error), USAGE_EXIT_CODE, ctx) from error
        except QuantlineError as error:
            raise _StoppedError(str(error), error.exit_code, ctx) from error
        except KeyboardInterrupt as error:
            raise _StoppedError(INTERRUPTED, INTERRUPTED_EXIT_CODE, ctx) from error


class _StoppedError(Exception):
    """Carry one line that says why a command stopped, and the exit code, through Typer."""

    def __init__(self, message: str, exit_code: int, context: Any = None) -> None:
        command = context.invoked_subcommand if context else None
        program = f"{PROGRAM} {command}" if command else PROGRAM
        super().__init__(f"{program}: {one_line(message)}")
        self.exit_code = exit_code


def _usage_message(error: typer.TyperException) -> str:
    """Return Typer's message in the form of quantline's own: the problem, then the usage."""
    problem = printable(" ".join(error.format_message().replace("Value error, ", "").split()))
    context = getattr(error, "ctx", None)
    expected = f" (expected: {' '.join(context.get_usage().split()[1:])})" if context else ""
    return f"{problem[:1].lower()}{problem[1:].rstrip('.')}{expected}; add --help to see how"


app = typer.Typer(
    cls=CommandGroups,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def command(
    heading: str, *examples: str, name: str | None = None
) -> Callable[[AnyFunction], AnyFunction]:
    """Register a function under a heading of the help; `examples` are its arguments, as typed."""
    epilog = "\n".join(f"  {PROGRAM} {example}" for example in examples)
    return app.command(name, cls=Command, rich_help_panel=heading, epilog=epilog)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {version(PROGRAM)}")
        raise typer.Exit


@app.callback()
def _change_directory(
    context: typer.Context,
    directory: Annotated[
        Path | None,
        typer.Option("-C", metavar="DIR", help="Run in that workspace, as git and make do."),
    ] = None,
    _version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """From one FP16 language model to quantized releases that people can trust."""
    if directory is not None:
        try:
            context.with_resource(chdir(directory))
        except OSError as error:
            raise InputError(f"-C {directory}: {error.strerror}; expected a workspace") from error


def run_command(arguments: Sequence[str] | None) -> int:
    """Run the command in `arguments`, else that of this process; return the exit code.

    Raises KeyboardInterrupt for an interrupt before the command is known.
    """
    try:
        code: int | None = app(arguments, prog_name=PROGRAM, standalone_mode=False)
        if code == INTERRUPTED_EXIT_CODE:  # Typer's own code, before it reaches the command
            raise KeyboardInterrupt
    except _StoppedError as stopped:
        return _reported(stopped)
    except typer.TyperException as error:
        return _reported(_StoppedError(_usage_message(error), USAGE_EXIT_CODE))
    return code or 0


def _reported(stopped: _StoppedError) -> int:
    """Print the message of a command that stopped; return its exit code."""
    print(stopped, file=sys.stderr)
    return stopped.exit_code
