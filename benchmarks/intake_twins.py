"""Time the examination of real repositories' layouts: `python -m benchmarks.intake_twins`.

The twins of tests/intake/twins.py have the real headers, in sparse files that take no disk. Each is
examined as `quantline plan` does, in a process of its own, so its start and imports count.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.result import Row, show
from pipeline.core.errors import InputError
from pipeline.core.workspace import Workspace
from pipeline.params.reading import read_params
from pipeline.planning.model_source import examined_base

ROOT = Path(__file__).resolve().parent.parent
REFUSED = "refused: "


def rows(work_dir: Path) -> list[Row]:
    """Make each twin in `work_dir` and examine it; `notes` returns what was found."""
    # Imported where twins are made: the measured processes do not need them.
    from tests.intake import twins

    makers: dict[str, Callable[[Path], Path]] = {
        "llama_3_1_8b": lambda directory: twins.llama_3_1(directory, twins.LLAMA_8B),
        "llama_3_1_70b": lambda directory: twins.llama_3_1(directory, twins.LLAMA_70B),
        "phi_4_mini": twins.phi_4_mini,
        "qwen_3_5_9b": twins.qwen_3_5,
    }
    measured: list[Row] = []
    for name, make in makers.items():
        directory = make(work_dir / name)
        started = time.monotonic()
        with findings_path(work_dir, name).open("w") as output:
            program = [sys.executable, "-m", "benchmarks.intake_twins", str(directory)]
            process = subprocess.Popen(program, stdout=output, cwd=ROOT)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{name}: the examination ended with {process.returncode}")
        wall_s, cpu_s = time.monotonic() - started, usage.ru_utime + usage.ru_stime
        found = findings_path(work_dir, name).read_text().splitlines()
        refused = sum(line.startswith(REFUSED) for line in found)
        measured += [
            Row(f"{name}_s", wall_s, None, None, "s"),
            Row(f"{name}_cpu_s", cpu_s, None, None, "CPU-s"),
            Row(f"{name}_findings", len(found) - refused, None, None, "findings"),
            Row(f"{name}_refused", refused, None, None, "of 1"),
        ]
    return measured


def notes(work_dir: Path) -> list[str]:
    """Return every finding that `rows` left in `work_dir`, with the twin's name before it."""
    return [
        f"{path.stem}: {line}"
        for path in sorted(work_dir.glob("*.found"))
        for line in path.read_text().splitlines()
    ]


def findings_path(work_dir: Path, name: str) -> Path:
    return work_dir / f"{name}.found"


def examine(directory: str) -> None:
    """Examine a local checkpoint as plan does, and print what is odd about it line by line."""
    model = read_params(ROOT / "params.yaml").model.model_copy(update={"source": directory})
    with TemporaryDirectory() as root:
        try:
            with examined_base(Workspace(Path(root)), model) as base:
                print("\n".join(map(str, base.findings)))
        except InputError as error:
            print(f"{REFUSED}{error}")


def main(*directories: str) -> None:
    if directories:
        examine(*directories)
        return
    with TemporaryDirectory() as work:
        show(rows(Path(work)))
        print("\n".join(notes(Path(work))))


if __name__ == "__main__":
    main(*sys.argv[1:])
