"""A pool: servers stay up side by side, and the longest unused one makes room."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
    """Ten GiB, and who holds them since its first answer; `events` are starts and ends in order.

    A call of one of `starting` lets that server answer.
    """

    held: dict[str, int] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    starting: dict[str, Callable[[], None]] = field(default_factory=dict)

    def free(self) -> int:
        return 10 * GIB - sum(self.held.values())

    def spec(
        self, name: str, gib: int, *, fails: bool = False, answers_at_once: bool = True
    ) -> ServerSpec:
        @contextmanager
        def serve() -> Iterator[Future[Server]]:
            answer = Future[Server]()

            def first_answer() -> None:
                self.held[name] = gib * GIB
                answer.set_result(Server(name, "http://host", "e", "0", (), Path("log")))

            self.starting[name] = first_answer
            self.events.append(f"+{name}")
            if fails:
                answer.set_exception(FailureError(f"{name}: does not start"))
            elif answers_at_once:
                first_answer()
            try:
                yield answer
            finally:
                self.held.pop(name, None)
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


def test_what_runs_is_not_started_again_and_spare_memory_is_left() -> None:
    memory = Memory()
    specs = [memory.spec(name, 4) for name in ("a", "b")]
    with ServerPool(free_bytes=memory.free) as pool:
        assert pool.launch(specs, spare_bytes=4 * GIB) == 1
        assert pool.launch(specs) == 2
        assert memory.events == ["+a", "+b"]


def test_servers_start_side_by_side_as_long_as_all_of_them_will_fit() -> None:
    memory = Memory()
    specs = [memory.spec(name, 4, answers_at_once=False) for name in ("a", "b", "c")]
    with ServerPool(free_bytes=memory.free) as pool:
        assert pool.launch(specs) == 2
        assert memory.events == ["+a", "+b"]
        assert memory.free() == 10 * GIB
        for name in ("b", "a"):
            memory.starting[name]()
        assert [pool.server(spec).what for spec in specs[:2]] == ["a", "b"]


def test_room_is_made_when_all_servers_have_the_memory_they_take() -> None:
    memory = Memory()
    first, second = (memory.spec(name, 4, answers_at_once=False) for name in ("a", "b"))
    with ServerPool(free_bytes=memory.free) as pool, ThreadPoolExecutor(1) as other:
        assert pool.launch([first, second]) == 2
        third = other.submit(pool.server, memory.spec("c", 4))
        for name in ("a", "b"):
            memory.starting[name]()
        assert third.result(timeout=30).what == "c"
        assert memory.events == ["+a", "+b", "-a", "+c"]


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
    assert memory.events == ["+a", "+b", "-b", "-a"]
