"""A disk that is really full: a program runs with a tiny file system mounted at one directory."""

import subprocess
import sys
from pathlib import Path

from tests.support import ROOT, missing, require_program

MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'


def run_on_tiny_disk(
    program: str, mount_dir: Path, *arguments: str, size_bytes: int
) -> subprocess.CompletedProcess[str]:
    """Run a Python program that sees a fresh file system of `size_bytes` at `mount_dir`.

    The mount belongs to a namespace of its own and ends with the program.
    """
    unshare = [require_program("unshare"), "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode != 0:
        missing("this machine does not let a test mount a file system of its own")
    mounted = [*unshare, "sh", "-c", MOUNT, "sh", str(size_bytes), str(mount_dir)]
    return subprocess.run(
        [*mounted, sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
