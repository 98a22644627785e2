"""Push or pull one file with oras-py, in its own environment: `oras_runs.py push FILE TARGET`."""

import json
import sys
import time
from pathlib import Path

from oras.client import OrasClient


def main(direction: str, path: str, target: str) -> None:
    client = OrasClient(hostname=target.partition("/")[0], insecure=True)
    started = time.monotonic()
    if direction == "push":
        client.push(target=target, files=[path], disable_path_validation=True)
    else:
        client.pull(target=target, outdir=path)
    wall_s = time.monotonic() - started
    peak_kib = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    print(json.dumps({"wall_s": wall_s, "peak_rss_mib": peak_kib / 1024}))


if __name__ == "__main__":
    main(*sys.argv[1:])
