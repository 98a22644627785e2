"""Start vLLM's API server with one import of vLLM instead of three.

vLLM serves with three processes. On a CPU each of them is a new interpreter that imports vLLM and
torch again, which takes most of the start. Here the server imports everything once and forks the
other two. The arguments are those of `vllm.entrypoints.launchers.api_server.entry`.

It forks only on at most two cores, where vLLM's worker computes with one thread. A new interpreter
reads the number of OpenMP threads and their cores from its environment. A forked one has read them
already, so that `bind_threads` sets the same for one thread. With more cores vLLM starts its
processes itself, and measurements there do not depend on this module.
"""

import gc
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import VllmConfig

START_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
MAX_CORES = 2  # vLLM reserves one of them for the API


def main() -> None:
    """Serve until the process is ended."""
    gc.disable()  # it finds nothing while modules are imported, and takes a seventh of the time
    from vllm.entrypoints.launchers.api_server.entry import main as serve

    if len(os.sched_getaffinity(0)) <= MAX_CORES:
        fork_workers()
    gc.enable()
    serve()


def fork_workers() -> None:
    """Make vLLM fork its processes, after importing what they need."""
    import vllm.v1.engine.async_llm
    import vllm.v1.worker.cpu_worker  # noqa: F401
    from vllm.platforms.cpu import CpuPlatform

    choose_start_method = CpuPlatform.check_and_update_config

    def choose_fork(config: "VllmConfig") -> None:
        """Check the configuration as vLLM does, then undo its choice of new interpreters."""
        choose_start_method(config)
        os.environ[START_METHOD] = "fork"

    CpuPlatform.check_and_update_config = staticmethod(choose_fork)
    os.register_at_fork(after_in_child=bind_threads)
    gc.freeze()  # pages that the collector does not touch stay shared


def bind_threads() -> None:
    """Use the cores that vLLM names for OpenMP in the environment of its worker."""
    if cores := os.environ.get("GOMP_CPU_AFFINITY"):
        import torch

        os.sched_setaffinity(0, {int(core) for core in cores.split()})
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


if __name__ == "__main__":
    main()
