"""A pool of servers that run side by side as long as memory lasts.

Rounds alternate between servers, and starting a server takes longer than a load. Where memory is
short, the least recently used server ends before another starts. An idle server uses hardly any
processor time: 1.4 % of a core was measured for vLLM.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Self

from pipeline.core.errors import FailureError
from pipeline.core.formatting import NBSP, bytes_text
from pipeline.core.progress import note
from pipeline.serving.server import Server

NOTICE_SECONDS = 0.5


@dataclass(frozen=True)
class ServerSpec:
    """Describe a server that can be started, and the bytes of memory that it will take."""

    name: str
    needed_bytes: int
    serve: Callable[[], AbstractContextManager[Future[Server]]]


class ServerPool:
    """Keep servers running until the `with` block ends.

    `free_bytes` returns the memory that is left for another server.
    """

    def __init__(self, *, free_bytes: Callable[[], int]) -> None:
        self._free_bytes = free_bytes
        self._servers: dict[str, tuple[Future[Server], ExitStack]] = {}  # least recently used first

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with ThreadPoolExecutor() as endings:  # a server takes seconds to end
            list(endings.map(self.stop, list(self._servers)))

    def is_running(self, name: str) -> bool:
        return name in self._servers

    def launch(self, specs: Sequence[ServerSpec], *, spare_bytes: int = 0) -> int:
        """Start servers side by side, in this order, as long as memory lasts; return how many.

        Those that run count, and `spare_bytes` are left free. Servers that start are waited for
        first: memory counts as free until they have taken it.
        """
        if not all(self.is_running(spec.name) for spec in specs):
            _wait_for([answer for answer, _ in self._servers.values()])
        free = self._free_bytes() - spare_bytes
        for number, spec in enumerate(specs):
            if self.is_running(spec.name):
                continue
            free -= spec.needed_bytes
            if free < 0:
                return number
            self._enter(spec)
        return len(specs)

    def server(self, spec: ServerSpec) -> Server:
        """Return the server of `spec` after its first answer; start it if it does not run.

        Raises FailureError when the machine has too little memory for it alone, and whatever
        starting it raises.
        """
        if spec.name not in self._servers:
            self._make_room(spec)
            self._enter(spec)
        answer, _ = self._servers[spec.name] = self._servers.pop(spec.name)
        _wait_for([answer])
        try:
            return answer.result()
        except FailureError:
            self.stop(spec.name)
            raise

    def _enter(self, spec: ServerSpec) -> None:
        with ExitStack() as stack:
            answer = stack.enter_context(spec.serve())
            self._servers[spec.name] = answer, stack.pop_all()

    def stop(self, name: str) -> None:
        """End a server if it runs."""
        if name in self._servers:
            _, stack = self._servers.pop(name)
            stack.close()

    def _make_room(self, spec: ServerSpec) -> None:
        _wait_for(
            [answer for answer, _ in self._servers.values()]
        )  # they have taken their memory then
        while self._free_bytes() < spec.needed_bytes and self._servers:
            oldest = next(iter(self._servers))
            note(f"{oldest}: ended to make room for {spec.name}")
            self.stop(oldest)
        if (free := self._free_bytes()) < spec.needed_bytes:
            raise FailureError(
                f"{spec.name}: its server needs {_bytes(spec.needed_bytes)} of memory, "
                f"{_bytes(free)} are free; end other programs or use a machine with more"
            )


def _wait_for(answers: Sequence[Future[Server]]) -> None:
    """Wait until servers answered or failed.

    Another thread may get the signal of Ctrl-C: this one notices it when it wakes up.
    """
    while wait(answers, timeout=NOTICE_SECONDS).not_done:
        pass


def _bytes(count: int) -> str:
    return bytes_text(count).replace(NBSP, " ")
