"""Runs in the serving environment: imports vLLM once and runs its programs in forks.

It answers on the socket whose number is its argument. A request is one message: JSON with the
arguments after `python -m`, the environment and the working directory, and open files: the log, a
socket for the answer, then those that the program inherits under the numbers that the request has.
The answer is the process id, and once it has ended its status. Every program ends with this one.
"""

import ctypes
import gc
import json
import os
import runpy
import signal
import socket
import sys
import tempfile
from typing import Any

import quantline_vllm.bench
import quantline_vllm.score  # noqa: F401
import torch
import vllm.entrypoints.launchers.api_server.entry
import vllm.v1.engine.async_llm
import vllm.v1.worker.cpu_worker  # noqa: F401

PR_SET_PDEATHSIG = 1
MESSAGE_BYTES = 1 << 17
MOST_FILES = 16


def serve(requests: socket.socket) -> None:
    while True:
        message, files, _, _ = socket.recv_fds(requests, MESSAGE_BYTES, MOST_FILES)
        if not message:
            return
        # A process between the two waits for the program, so that this one waits for requests.
        if os.fork() == 0:
            requests.close()
            os._exit(watch(json.loads(message), files))
        for file in files:
            os.close(file)
        ended_watchers()


def watch(request: dict[str, Any], files: list[int]) -> int:
    end_with_parent()
    log, answers, *inherited = files
    with socket.socket(fileno=answers) as answer:
        child = os.fork()
        if child == 0:
            answer.close()
            os._exit(run(request, log, inherited))
        for file in (log, *inherited):
            os.close(file)
        answer.send(str(child).encode())
        answer.send(str(os.waitpid(child, 0)[1]).encode())
    return 0


def run(request: dict[str, Any], log: int, inherited: list[int]) -> int:
    """Run the module of the request as the main one. Returns its exit code."""
    end_with_parent()
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for file, number in zip(inherited, request["pass_fds"], strict=True):
        os.dup2(file, number)
    module, *arguments = request["arguments"]
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    tempfile.tempdir = None  # that of its own environment
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    sys.argv[1:] = arguments
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as exit:
        code = exit.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


def end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def ended_watchers() -> None:
    while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG):
        pass


if __name__ == "__main__":
    gc.freeze()  # pages that the collector does not touch stay shared
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        serve(requests)
