"""Start a process as vLLM starts its worker on a CPU, and write what it finds: a program.

Arguments: a model directory, the core of the worker, the file to write.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from quantline_vllm.server import fork_workers
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.utils.system_utils import get_mp_context


def report(queue: Any) -> None:
    queue.put({"cores": sorted(os.sched_getaffinity(0)), "threads": torch.get_num_threads()})


if __name__ == "__main__":
    model_dir, core, answer = sys.argv[1:]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = core
    fork_workers()
    config = EngineArgs(model=model_dir, enforce_eager=True).create_engine_config()
    context = get_mp_context()
    queue = context.Queue()
    with OMPProcessManager(config).configure_omp_envs(0, 0):
        process = context.Process(target=report, args=(queue,))
        process.start()
    worker = queue.get(timeout=60)
    process.join()
    found = {
        "method": context.get_start_method(),
        "worker": worker,
        "parent_cores": sorted(os.sched_getaffinity(0)),
    }
    Path(answer).write_text(json.dumps(found))
