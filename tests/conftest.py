"""Settings of every test run, and the workspace that tests of releases begin with."""

import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from socket import socket

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from pipeline.core.errors import FailureError
from pipeline.core.process import Daemon, exit_text, last_lines
from pipeline.core.transformers_library import load_transformers
from pipeline.core.workspace import Workspace
from tests.forks import ForkServer, Libraries, forked_program, started_libraries
from tests.support import ROOT
from tests.vllm_programs import fork_server as vllm_fork_server
from tests.vllm_programs import forked_programs, start_program

# As in pipeline.cli: idle threads of torch sleep instead of spinning, and modules load faster.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
gc.set_threshold(50_000)

CONVERTER = "pipeline.gguf.convert"

# They take minutes: what begins with them does not end with one of them alone.
LONGEST = ("vllm", "tests/test_babyllama.py")
STARTS_VLLM = {
    "tests/engines/test_in_vllm.py",
    "tests/plugin/test_kernels.py",
    "tests/readers/test_every_architecture.py",
    "tests/readers/test_readers.py",
    "tests/readers/test_vllm_formats.py",
    "tests/serving/test_llama_cpp.py",
    "tests/serving/test_model_run.py",
    "tests/serving/test_vllm.py",
    "tests/stages/test_benchmark.py",
    "tests/stages/test_evaluate.py",
}


def keep_to_own_cores(worker: int, num_workers: int) -> None:
    """Share out the cores: threads of two workers on one core wait for each other, busily."""
    cores = sorted(os.sched_getaffinity(0))
    if num_workers <= len(cores):
        os.sched_setaffinity(0, cores[worker::num_workers])


# Before any test module brings in torch, which counts the cores then, or transformers with more.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    keep_to_own_cores(int(worker[2:]), int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    load_transformers()


def unit(file: str) -> str:
    """What stays together on one worker: a file, or all files that start vLLM."""
    return "vllm" if file in STARTS_VLLM else file


class ByUnit(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid.partition("::")[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByUnit:
    return ByUnit(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest units first and slow files before the others, so that workers end alike."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def rank(item: pytest.Item) -> int:
        own = unit(item.path.relative_to(ROOT).as_posix())
        return LONGEST.index(own) if own in LONGEST else len(LONGEST) + (item.path not in slow)

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """Do not look for garbage among all that is imported, again and again."""
    gc.freeze()


@pytest.fixture(scope="session")
def libraries() -> Iterator[Callable[[], Libraries]]:
    """Libraries are imported once for all servers of forks."""
    with ExitStack() as running:
        yield cache(lambda: running.enter_context(started_libraries()))


@pytest.fixture(scope="session", autouse=True)
def converter(libraries: Callable[[], Libraries]) -> Iterator[Callable[[], ForkServer]]:
    """llama.cpp's converter is imported once for all conversions; each runs in its own process."""
    from pipeline.gguf import files as gguf  # not in the process that hands out the tests

    with ExitStack() as running, pytest.MonkeyPatch.context() as patch:

        @cache
        def server() -> ForkServer:
            paths = (gguf.CONVERTER_DIR, gguf.CONVERTER_DIR / "gguf-py")
            modules = ("conversion", "gguf", CONVERTER)
            return running.enter_context(libraries().fork_server(*modules, paths=paths))

        def run_converter(
            command: Sequence[str | Path], *, log_path: Path, environment: Mapping[str, str]
        ) -> None:
            *_, module, request_path = command
            code = server().run(str(module), "main", str(request_path), log_path=log_path)
            if code != 0:
                raise FailureError(f"{module}: {exit_text(code)}: {last_lines(log_path)}")

        patch.setattr(gguf, "run_program", run_converter)
        yield server


@pytest.fixture(scope="session")
def python_of_forks(
    converter: Callable[[], ForkServer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A python for other processes that shares the converter with this one."""
    path = tmp_path_factory.mktemp("python") / "python"

    def run(arguments: list[str], log_path: Path) -> int:
        _, module, request_path = arguments
        return converter().run(module, "main", request_path, log_path=log_path)

    forked = f'"-m {CONVERTER} "*'
    with forked_program(path, run, forked=forked, otherwise=sys.executable):
        yield path


@pytest.fixture(scope="session", autouse=True)
def vllm_server() -> Iterator[Callable[[], socket]]:
    """vLLM is imported once for all of its programs; each runs in its own process."""
    with ExitStack() as running:
        server = cache(lambda: running.enter_context(vllm_fork_server()))
        with forked_programs(server):
            yield server


@pytest.fixture
def own_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every program of vLLM is started as for a user, and no fork."""
    monkeypatch.setattr(Daemon, "__enter__", start_program)


@pytest.fixture
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No login, upload journal or model of whoever runs the tests."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_settings: None) -> Workspace:
    """The current directory, with two packages; its params.yaml has no section but `registry`."""
    from tests.registry_server import use_registry, write_packages  # nor these

    workspace = Workspace(tmp_path / "workspace")
    write_packages(workspace, "awq-w4-g128", "gguf-q4-k-m")
    use_registry(workspace, None)
    monkeypatch.chdir(workspace.root)
    return workspace
