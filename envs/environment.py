"""Install exactly the packages that a list pins into a virtual environment.

No dependency is resolved. A package is installed only if its archive has a sha256 that the list
pins. The output of a command is shown only when it fails, and then only its end.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ENVS_DIR = Path(__file__).resolve().parent
ROOT = ENVS_DIR.parent
CODE = ("setup.py", "environment.py", "llama_cpp_build.py", "llama_cpp.cmake")
STAMP_FILE = "quantline-setup.sha256"
LOG_FILE = "quantline-setup.log"
SHOWN_LINES = 15
HASH_REFUSAL = "DO NOT MATCH THE HASHES"
# Once this is set, no further command is started.
interrupted = threading.Event()


class SetupError(Exception):
    """Stop set-up with one line that says what to do; `output` is the end of a command's output."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


@dataclass(frozen=True)
class Environment:
    """Hold the directory of a virtual environment, and the files that it is made from."""

    directory: Path
    torch_path: Path
    pins_path: Path
    sources: tuple[Path, ...]

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    @property
    def stamp_path(self) -> Path:
        return self.directory / STAMP_FILE

    def digest(self) -> str:
        """Return the sha256 over the pins, set-up's code, the Python version and the directory."""
        code = (ENVS_DIR / name for name in CODE)
        paths = (self.torch_path, self.pins_path, *self.sources, *code)
        return digest_of(sys.version, str(self.directory), *(path.read_text() for path in paths))

    def is_up_to_date(self) -> bool:
        return self.stamp_path.exists() and self.stamp_path.read_text() == self.digest()


def read_pins(path: Path) -> dict[str, str]:
    """Return requirements by package name: each its version and the sha256 of its archives."""
    lines = path.read_text().replace("\\\n", " ").splitlines()
    pins = (" ".join(line.split("#")[0].split()) for line in lines)
    return {canonical_name(pin.partition("==")[0]): pin for pin in pins if pin}


def canonical_name(name: str) -> str:
    """Return a package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def remove_unfinished_packages(environment: Environment) -> None:
    """Remove the records of packages whose installation was killed.

    pip writes INSTALLER last. Without the record, it installs the package again.
    """
    for record_dir in environment.directory.glob("lib/python*/site-packages/*.dist-info"):
        if not (record_dir / "INSTALLER").exists():
            shutil.rmtree(record_dir)


def install_pins(environment: Environment, pins: Iterable[str]) -> None:
    """Install pins exactly as they stand, each only if its archive has a sha256 of its pin."""
    with tempfile.TemporaryDirectory() as work:
        requirements_path = Path(work) / "requirements.txt"
        requirements_path.write_text("\n".join(pins))
        exact = ("--no-deps", "--no-build-isolation", "--require-hashes")
        pip(environment, "install", *exact, "--requirement", requirements_path)


def pip(environment: Environment, *arguments: object, **variables: str) -> None:
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
    run(environment, environment.python, "-m", "pip", *quiet, *arguments, **variables)


def run(environment: Environment, *command: object, **variables: str) -> None:
    """Run a command without showing its output. Raises SetupError when it fails."""
    if interrupted.is_set():
        raise SetupError(f"{environment.directory.name}: interrupted")
    result = subprocess.run(
        [str(argument) for argument in command],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if result.returncode == 0:
        return
    environment.directory.mkdir(exist_ok=True)
    log_path = environment.directory / LOG_FILE
    log_path.write_text(result.stdout)
    end = "".join(f"  {line}\n" for line in result.stdout.splitlines()[-SHOWN_LINES:])
    if HASH_REFUSAL in result.stdout:
        remedy = (
            "an archive is not the one that its list pins; if you changed a version, write its "
            "hashes with `.venv/bin/python envs/hashes.py`; else do not trust where it came from"
        )
    else:
        remedy = f"failed, the whole output is in {log_path}; the same command goes on from here"
    raise SetupError(f"{environment.directory.name}: {remedy}", end)


def digest_of(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def say(environment: Environment, message: str) -> None:
    print(f"{environment.directory.name}: {message}", flush=True)
