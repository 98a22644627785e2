"""One-line errors for exhausted memory and for files without access.

Stages report the errors that they expect where these happen. The errors of this module can happen
on any line, and `pipeline.cli_app` handles them once. It does not import torch, which most commands
do not need.
"""

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.errors import FailureError
from pipeline.core.files import readable_disk_errors

# Messages of torch and its libraries in a plain RuntimeError.
CPU_MESSAGES = re.compile(r"DefaultCPUAllocator: (can't allocate|not enough) memory|std::bad_alloc")
GPU_MESSAGES = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|CU(BLAS|SOLVER|DNN)_STATUS_ALLOC_FAILED"
)
REQUEST = re.compile(r"[Tt]ri?ed to allocate (\d+(?:\.\d+)? \w+)")


@contextmanager
def readable_system_errors() -> Iterator[None]:
    """Raise FailureError for exhausted memory and for a file or directory without access.

    The causes of an error are looked at too, because a library may wrap it.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if (memory := exhausted_memory(cause)) is not None:
                request = REQUEST.search(str(cause))
                wanted = f" ({request[1]} more were asked for)" if request else ""
                raise FailureError(
                    f"{memory} ran out{wanted}; end other programs that use it, or use a machine "
                    "with more: `quantline plan` says what each stage needs"
                ) from error
            cause = cause.__cause__
        if isinstance(error, OSError) and isinstance(error.filename, str):
            with readable_disk_errors(Path(error.filename)):
                raise
        raise


@contextmanager
def readable_memory_errors(what: str, remedy: str) -> Iterator[None]:
    """Raise FailureError that begins with `what` and ends with `remedy` for exhausted memory.

    On a CPU the system may kill the process instead of refusing an allocation.
    """
    try:
        yield
    except Exception as error:
        memory = exhausted_memory(error)
        if memory is None:
            raise
        raise FailureError(f"{what}: {memory} ran out; {remedy}") from error


def exhausted_memory(error: BaseException) -> str | None:
    """Tell which memory an error says ran out: `GPU memory`, `memory` or None."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return "GPU memory"
    if isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    ):
        return "memory"
    if isinstance(error, RuntimeError):
        if GPU_MESSAGES.search(str(error)):
            return "GPU memory"
        if CPU_MESSAGES.search(str(error)):
            return "memory"
    return None
