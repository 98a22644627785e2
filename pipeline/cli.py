"""The program `quantline`. It loads its modules under `main`, where an interrupt is one line.

`pipeline.commands` has the commands, `pipeline.cli_app` turns what stops one into one line.
"""

import gc
import signal
import sys
from collections.abc import Sequence

from pipeline.core.errors import INTERRUPTED, INTERRUPTED_EXIT_CODE

GARBAGE_THRESHOLD = 10_000
"""New objects before Python looks for garbage. Modules make objects that stay: looking among them
as often as it does by itself takes a sixth of the time in which they load."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, of `arguments` or of this process; return the exit code."""
    try:
        # Being told to end is like Ctrl-C: what this process started ends with it.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        gc.set_threshold(GARBAGE_THRESHOLD)
        from pipeline.commands import run_command

        return run_command(arguments)
    except KeyboardInterrupt:
        print(f"quantline: {INTERRUPTED}", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE


if __name__ == "__main__":
    sys.exit(main())
