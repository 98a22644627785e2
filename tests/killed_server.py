"""Keeps a sleeping program alive until it is ended itself; prints the program's pid first."""

import signal
import sys
import time
from pathlib import Path

from pipeline.core.process import Daemon

if __name__ == "__main__":
    # A shell that runs its jobs in the background has them ignore Ctrl-C, and their children too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    with Daemon(sleeping, log_path=Path(sys.argv[1]), environment={}) as daemon:
        print(daemon.pid, flush=True)
        time.sleep(600)
