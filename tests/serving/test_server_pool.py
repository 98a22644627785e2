"""A pool: servers stay up side by side, and the longest unused one makes room."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.core.errors import FailureError
from pipeline.serving.server import Server
from pipeline.serving.server_pool import ServerPool, ServerSpec

GIB = 1 << 30


@dataclass
class Memory:
    """Ten GiB, and who holds them; `events` are starts and ends in order."""

    held: dict[str, int] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)

    def free(self) -> int:
        return 10 * GIB - sum(self.held.values())

    def spec(self, name: str, gib: int, *, fails: bool = False) -> ServerSpec:
        @contextmanager
        def serve() -> Iterator[Server]:
            if fails:
                raise FailureError(f"{name}: does not start")
            self.held[name] = gib * GIB
            self.events.append(f"+{name}")
            try:
                yield Server(name, "http://host", "e", "0", "k", "d", (), 0.0, Path("log"))
            finally:
                del self.held[name]
                self.events.append(f"-{name}")

        return ServerSpec(name, gib * GIB, serve)


def test_servers_stay_up_while_memory_lasts() -> None:
    memory = Memory()
    with ServerPool(free_bytes=memory.free) as pool:
        for _ in range(3):
            assert pool.server(memory.spec("a", 4)).what == "a"
            assert pool.server(memory.spec("b", 4)).what == "b"
        assert memory.events == ["+a", "+b"]
    assert memory.held == {}


def test_the_longest_unused_server_makes_room() -> None:
    memory = Memory()
    with ServerPool(free_bytes=memory.free) as pool:
        for name in ("a", "b", "a", "c"):
            pool.server(memory.spec(name, 4))
        assert memory.events == ["+a", "+b", "-b", "+c"]
        assert pool.is_running("a")
        assert not pool.is_running("b")


def test_what_does_not_fit_at_all_is_refused_with_the_numbers() -> None:
    memory = Memory()
    with (
        ServerPool(free_bytes=memory.free) as pool,
        pytest.raises(FailureError, match=r"its server needs 11\.0 GiB of memory, 10\.0 GiB are"),
    ):
        pool.server(memory.spec("a", 11))


def test_all_servers_end_with_the_block_whatever_happens() -> None:
    memory = Memory()

    def interrupted() -> None:
        with ServerPool(free_bytes=memory.free) as pool:
            pool.server(memory.spec("a", 2))
            pool.server(memory.spec("b", 2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sorted(memory.events) == ["+a", "+b", "-a", "-b"]


def test_a_server_that_does_not_start_leaves_the_others_alone() -> None:
    memory = Memory()
    with ServerPool(free_bytes=memory.free) as pool:
        pool.server(memory.spec("a", 2))
        with pytest.raises(FailureError, match="b: does not start"):
            pool.server(memory.spec("b", 2, fails=True))
        assert pool.is_running("a")
        pool.stop("a")
        pool.stop("a")
    assert memory.events == ["+a", "-a"]
