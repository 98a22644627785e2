"""Run the program `quantline`.

Modules are imported inside `main`, so that an interrupt during their import is one line too.
`pipeline.commands` has the commands; `pipeline.cli_app` turns the error of a command into one line.
"""

import gc
import signal
import sys
from collections.abc import Sequence

from pipeline.core.errors import INTERRUPTED, INTERRUPTED_EXIT_CODE

GARBAGE_THRESHOLD = 50_000
"""New objects before Python looks for garbage. Modules make objects that stay: looking among them
as often as it does by itself takes a sixth of the time in which they load."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command in `arguments`, else that of this process; return the exit code."""
    try:
        # SIGTERM acts like Ctrl-C, so that the processes that this one started end too.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        gc.set_threshold(GARBAGE_THRESHOLD)
        from pipeline.commands import run_command

        return run_command(arguments)
    except KeyboardInterrupt:
        print(f"quantline: {INTERRUPTED}", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE


if __name__ == "__main__":
    sys.exit(main())
