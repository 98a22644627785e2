"""Set-up, run on packages of a few bytes from a directory."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import ROOT

ENVS_DIR = ROOT / "envs"
SET_UP = """
import signal
import sys
from pathlib import Path
from environment import Environment
from setup import set_up_all, torch_list

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
*directories, torch_path, pins_path = map(Path, sys.argv[1:])
set_up_all({Environment(it, torch_path, pins_path, ()): None for it in directories})
"""

pytestmark = pytest.mark.slow  # pip, again and again


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Machine:
    """A directory of wheels, the only place that pip knows, and lists that pin them."""

    directory: Path

    @property
    def torch_path(self) -> Path:
        return self.directory / "torch.txt"

    @property
    def pins_path(self) -> Path:
        return self.directory / "pins.txt"

    def add_wheel(self, name: str, version: str) -> str:
        """Make a wheel with one module; return its pin."""
        wheel_path = self.directory / "wheels" / f"{name}-{version}-py3-none-any.whl"
        wheel_path.parent.mkdir(exist_ok=True)
        info = f"{name}-{version}.dist-info"
        with zipfile.ZipFile(wheel_path, "w") as wheel:
            wheel.writestr(f"{name}.py", f"VERSION = {version!r}\n")
            wheel.writestr(f"{info}/METADATA", f"Name: {name}\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/RECORD,,\n")
        digest = hashlib.sha256(wheel_path.read_bytes()).hexdigest()
        return f"{name}=={version} \\\n    --hash=sha256:{digest}\n"

    def start(self, *names: str, torch_path: Path | None = None) -> subprocess.Popen[str]:
        """Start to set up environments of this directory."""
        directories = [self.directory / it for it in names]
        lists = (torch_path or self.torch_path, self.pins_path)
        variables = {
            "PYTHONPATH": str(ENVS_DIR),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.directory / "wheels"),
        }
        return subprocess.Popen(
            [sys.executable, "-c", SET_UP, *directories, *lists],
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *names: str, torch_path: Path | None = None) -> Result:
        with self.start(*names, torch_path=torch_path) as process:
            stdout, stderr = process.communicate()
        return Result(process.returncode, stdout, stderr)

    def version_in(self, environment: str, module: str) -> str:
        python = self.directory / environment / "bin" / "python"
        code = f"import {module}; print({module}.VERSION)"
        return subprocess.check_output([python, "-c", code], text=True).strip()


@pytest.fixture(scope="module")
def empty_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with pip alone; a copy of pip is made sooner than an installed one."""
    directory = tmp_path_factory.mktemp("environment") / "empty"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    (site_dir,) = directory.glob("lib/python*/site-packages")
    own_site_dir = Path(sysconfig.get_path("purelib"))
    for part in (own_site_dir / "pip", *own_site_dir.glob("pip-*.dist-info")):
        shutil.copytree(part, site_dir / part.name)
    return directory


@pytest.fixture
def machine(tmp_path: Path, empty_environment: Path) -> Machine:
    shutil.copytree(empty_environment, tmp_path / ".venv-a", symlinks=True)
    made = Machine(tmp_path)
    made.torch_path.write_text(made.add_wheel("torch", "2.0"))
    made.pins_path.write_text("# Two packages.\n" + made.add_wheel("ant", "1.0"))
    with made.pins_path.open("a") as file:
        file.write(made.add_wheel("bee", "1.0"))
    return made


def test_two_environments_are_made_and_then_left_alone(machine: Machine) -> None:
    result = machine.run(".venv-a", ".venv-b")
    assert (result.returncode, result.stderr) == (0, "")
    for name in (".venv-a", ".venv-b"):
        assert machine.version_in(name, "torch") == "2.0"
        assert machine.version_in(name, "bee") == "1.0"
        lines = [it for it in result.stdout.splitlines() if it.startswith(f"{name}: ")]
        assert len(lines) == 3
        assert lines[-1].startswith(f"{name}: ready after ")
    assert len(result.stdout.splitlines()) == 6
    again = machine.run(".venv-a", ".venv-b")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_an_archive_with_another_hash_is_refused(machine: Machine) -> None:
    good = machine.pins_path.read_text()
    changed = good[:-2] + ("0" if good[-2] != "0" else "1") + "\n"
    machine.pins_path.write_text(changed)
    result = machine.run(".venv-a")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == (
        "setup: .venv-a: an archive is not the one that its list pins; if you changed a version, "
        "write its hashes with `.venv/bin/python envs/hashes.py`; else do not trust where it came "
        "from"
    )
    assert not (machine.directory / ".venv-a" / "quantline-setup.sha256").exists()
    # What was installed before stays, and with the right list the same command goes on from there.
    machine.pins_path.write_text(good)
    assert machine.run(".venv-a").returncode == 0
    assert machine.version_in(".venv-a", "bee") == "1.0"


def test_a_package_without_a_hash_is_refused(machine: Machine) -> None:
    machine.pins_path.write_text("ant==1.0\n")
    result = machine.run(".venv-a")
    assert result.returncode == 1
    log_path = machine.directory / ".venv-a" / "quantline-setup.log"
    assert result.stderr.splitlines()[-1] == (
        f"setup: .venv-a: failed, the whole output is in {log_path}; the same command goes on from "
        "here"
    )
    assert "Hashes are required" in log_path.read_text()


def test_what_a_kill_left_half_installed_is_installed_again(machine: Machine) -> None:
    assert machine.run(".venv-a").returncode == 0
    (site,) = machine.directory.glob(".venv-a/lib/python*/site-packages")
    # pip writes who installed a package after all of its files.
    (site / "bee-1.0.dist-info" / "INSTALLER").unlink()
    (site / "bee.py").unlink()
    (machine.directory / ".venv-a" / "quantline-setup.sha256").unlink()
    assert machine.run(".venv-a").returncode == 0
    assert machine.version_in(".venv-a", "bee") == "1.0"


@pytest.mark.parametrize("interrupt", [os.killpg, os.kill], ids=["group", "between-commands"])
def test_an_interrupted_setup_goes_on_where_it_stopped(
    machine: Machine, interrupt: Callable[[int, int], None]
) -> None:
    with machine.start(".venv-a") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == ".venv-a: torch==2.0 by torch.txt\n"
        # A terminal interrupts the whole group; pip may be between two commands and not there.
        interrupt(process.pid, signal.SIGINT)
        _, stderr = process.communicate()
    assert process.returncode == 1
    assert stderr == "setup: interrupted; the same command goes on where it stopped\n"
    assert not (machine.directory / ".venv-a" / "quantline-setup.sha256").exists()
    assert machine.run(".venv-a").returncode == 0
    assert machine.version_in(".venv-a", "bee") == "1.0"


def test_one_failure_does_not_undo_the_other_environment(machine: Machine) -> None:
    (machine.directory / ".venv-b").write_text("not a directory")
    result = machine.run(".venv-a", ".venv-b")
    assert result.returncode == 1
    assert result.stderr.startswith("setup: ")
    assert result.stderr.count("\n") == 1
    assert machine.version_in(".venv-a", "bee") == "1.0"


def test_another_build_of_torch_is_refused_where_no_gpu_is(machine: Machine) -> None:
    machine.add_wheel("torch", "2.13.0")
    result = machine.run(".venv-a", torch_path=ENVS_DIR / "pipeline" / "torch-cpu.txt")
    assert result.returncode == 1
    assert result.stderr == (
        "setup: torch==2.13.0: pip would take another build than those for CPUs that torch-cpu.txt "
        "lists; point pip at one of these (README.md, Set-up)\n"
    )


def test_hashes_are_written_from_the_index(tmp_path: Path) -> None:
    wheels = Machine(tmp_path)
    pin = wheels.add_wheel("ant", "1.0")
    page_dir = tmp_path / "simple" / "ant"
    page_dir.mkdir(parents=True)
    (wheel_path,) = (tmp_path / "wheels").iterdir()
    digest = hashlib.sha256(wheel_path.read_bytes()).hexdigest()
    elsewhere = ("ant-1.1-py3-none-any.whl", "ant-1.0-cp311-cp311-win_amd64.whl", "ant-1.0.tar.gz")
    links = [f'<a href="{wheel_path.name}#sha256={digest}">it</a>']
    links += [f'<a href="{it}#sha256={"f" * 64}">not it</a>' for it in elsewhere]
    (page_dir / "index.html").write_text("<!DOCTYPE html><html><body>" + "\n".join(links))
    list_path = tmp_path / "list.txt"
    list_path.write_text(f"# Why.\nant==1.0 \\\n    --hash=sha256:{'0' * 64}\n")
    variables = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": page_dir.parent.as_uri()}
    subprocess.run(
        [sys.executable, ENVS_DIR / "hashes.py", list_path],
        env={**os.environ, **variables},
        check=True,
    )
    assert list_path.read_text() == "# Why.\n" + pin
