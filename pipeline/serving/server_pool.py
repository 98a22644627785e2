"""A pool of servers that run side by side as long as memory lasts.

Rounds go from server to server, and starting a server takes longer than a load. Where memory is
short, the least recently used server ends before another starts. An idle server waits for its
network and uses hardly any processor time (1.4 % of a core was measured for vLLM).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from pipeline.core.errors import FailureError
from pipeline.core.formatting import NBSP, bytes_text
from pipeline.core.progress import note
from pipeline.serving.server import Server


@dataclass(frozen=True)
class ServerSpec:
    """Say how a server is started and how many bytes of memory it will take."""

    name: str
    needed_bytes: int
    serve: Callable[[], AbstractContextManager[Server]]


class ServerPool:
    """Keep servers running until the `with` block ends.

    `free_bytes` returns the memory that is left for another server.
    """

    def __init__(self, *, free_bytes: Callable[[], int]) -> None:
        self._free_bytes = free_bytes
        self._running: dict[str, tuple[Server, ExitStack]] = {}  # least recently used first

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with ExitStack() as endings:
            for _, stack in self._running.values():
                endings.push(stack)

    def is_running(self, name: str) -> bool:
        return name in self._running

    def server(self, spec: ServerSpec) -> Server:
        """Return the server of `spec`; start it if it does not run.

        Raises FailureError when the machine has too little memory for it alone, and whatever
        starting it raises.
        """
        if spec.name in self._running:
            self._running[spec.name] = self._running.pop(spec.name)
            return self._running[spec.name][0]
        self._make_room(spec)
        with ExitStack() as stack:
            server = stack.enter_context(spec.serve())
            self._running[spec.name] = server, stack.pop_all()
        return server

    def stop(self, name: str) -> None:
        """End a server if it runs."""
        if name in self._running:
            _, stack = self._running.pop(name)
            stack.close()

    def _make_room(self, spec: ServerSpec) -> None:
        while self._free_bytes() < spec.needed_bytes and self._running:
            oldest = next(iter(self._running))
            note(f"{oldest}: ended to make room for {spec.name}")
            self.stop(oldest)
        if (free := self._free_bytes()) < spec.needed_bytes:
            raise FailureError(
                f"{spec.name}: its server needs {_bytes(spec.needed_bytes)} of memory, "
                f"{_bytes(free)} are free; end other programs or use a machine with more"
            )


def _bytes(count: int) -> str:
    return bytes_text(count).replace(NBSP, " ")
