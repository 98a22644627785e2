"""Servers that are kept up side by side as long as memory lasts.

Rounds go from server to server again and again, and starting one takes longer than a load. Where
memory is short, the server that was used longest ago ends before another starts. An idle server
waits for its network and uses next to no processor (1.4 % of a core was measured for vLLM).
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
class Launch:
    """How a server is started, and the bytes of memory that it will take."""

    name: str
    needed_bytes: int
    serve: Callable[[], AbstractContextManager[Server]]


class Fleet:
    """The running servers; all of them end with the `with` block.

    `free_bytes` says what memory is left for another one.
    """

    def __init__(self, *, free_bytes: Callable[[], int]) -> None:
        self._free_bytes = free_bytes
        self._running: dict[str, tuple[Server, ExitStack]] = {}  # the longest unused one first

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

    def server(self, launch: Launch) -> Server:
        """The server of `launch`, started if it does not run.

        Raises FailureError when it does not fit beside nothing else, and what starting it raises.
        """
        if launch.name in self._running:
            self._running[launch.name] = self._running.pop(launch.name)
            return self._running[launch.name][0]
        self._make_room(launch)
        with ExitStack() as stack:
            server = stack.enter_context(launch.serve())
            self._running[launch.name] = server, stack.pop_all()
        return server

    def stop(self, name: str) -> None:
        """End a server, if it runs."""
        if name in self._running:
            _, stack = self._running.pop(name)
            stack.close()

    def _make_room(self, launch: Launch) -> None:
        while self._free_bytes() < launch.needed_bytes and self._running:
            oldest = next(iter(self._running))
            note(f"{oldest}: ended to make room for {launch.name}")
            self.stop(oldest)
        if (free := self._free_bytes()) < launch.needed_bytes:
            raise FailureError(
                f"{launch.name}: its server needs {_bytes(launch.needed_bytes)} of memory, "
                f"{_bytes(free)} are free; end other programs or use a machine with more"
            )


def _bytes(count: int) -> str:
    return bytes_text(count).replace(NBSP, " ")
