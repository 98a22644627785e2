"""Memory that runs out and files without access are one line, wherever that happens."""

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.cli import main
from pipeline.core.errors import FailureError, InputError
from pipeline.core.files import write_bytes
from pipeline.core.system_errors import readable_system_errors
from pipeline.verbs import ls

EIB = 1 << 60


def raises(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def wrapped() -> None:
    try:
        torch.empty(EIB)
    except RuntimeError as error:
        raise InputError("LlamaModel: cannot be run layer by layer") from error


CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.2 GiB."
EXHAUSTED: dict[str, tuple[Callable[[], object], str]] = {
    "torch on the CPU": (lambda: torch.empty(EIB), "memory ran out (4611686018427387904 bytes"),
    "numpy": (lambda: np.empty(EIB >> 8), "memory ran out;"),
    "Python": (lambda: bytearray(EIB), "memory ran out;"),
    "the system": (raises(OSError(errno.ENOMEM, "Cannot allocate memory")), "memory ran out;"),
    "an error made of one": (wrapped, "memory ran out (4611686018427387904 bytes"),
    "torch on a GPU": (raises(torch.OutOfMemoryError(CUDA)), "GPU memory ran out (2.00 GiB more"),
    "CUDA": (raises(RuntimeError("CUDA error: out of memory")), "GPU memory ran out;"),
    "cuBLAS": (
        raises(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`")),
        "GPU memory ran out;",
    ),
}


@pytest.mark.parametrize("case", EXHAUSTED)
def test_memory_that_runs_out_is_one_line_of_any_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    exhaust, expected = EXHAUSTED[case]
    monkeypatch.setattr(ls, "run", lambda *_, **__: exhaust())
    assert main(["ls"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"quantline ls: {expected}")
    assert "`quantline plan` says what each stage needs" in line


def test_a_directory_or_a_file_in_the_wrong_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    write_bytes(tmp_path / "file", b"")
    with (
        pytest.raises(FailureError, match="dir: a directory is where a file should be; remove"),
        readable_system_errors(),
    ):
        (tmp_path / "dir").read_bytes()
    with (
        pytest.raises(FailureError, match="file/x: a file is where a directory of this path"),
        readable_system_errors(),
    ):
        (tmp_path / "file" / "x").read_bytes()


@pytest.mark.parametrize(
    "error", [RuntimeError("a defect"), FileNotFoundError(2, "gone", "x"), ConnectionResetError()]
)
def test_any_other_error_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, readable_system_errors():
        raise error
    assert caught.value is error
