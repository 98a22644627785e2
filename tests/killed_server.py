"""Keeps a sleeping program alive until it is ended itself; prints the program's pid first."""

import sys
import time
from pathlib import Path

from pipeline.adapters.process import Daemon

if __name__ == "__main__":
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    with Daemon(sleeping, log_path=Path(sys.argv[1]), environment={}) as daemon:
        print(daemon.pid, flush=True)
        time.sleep(600)
