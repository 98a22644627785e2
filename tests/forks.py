"""A program that imports libraries once; servers are forks of it that import more.

A server runs each function that it is asked for in a fork. What a fork does is done by a process of
its own, as by a program that was started for it, without the seconds that every such start imports
for.
"""

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import SOCK_SEQPACKET, recv_fds, send_fds, socket, socketpair
from threading import Thread
from typing import Any

from tests.support import ROOT

# What takes long to import and more than one of the servers uses; nothing of this package.
LIBRARIES = (
    "typer",
    "torch",
    "llama_cpp",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "lm_eval.tasks",
)
MESSAGE_BYTES = 1 << 17
MOST_FILES = 4

PROGRAM = """#!/bin/sh
case "$*" in {forked}) ;; *) exec {otherwise} "$@" ;; esac
echo "$*" > {directory}/requests
read code < {directory}/answers
cat {directory}/log
exit "$code"
"""


@dataclass(frozen=True)
class ForkServer:
    requests: socket

    def run(
        self,
        module: str,
        function: str,
        *arguments: Any,
        log_path: Path,
        files: Sequence[int] = (),
    ) -> int:
        """The code of a process that runs `module.function`: minus the signal that ended it.

        It is 1 after an error and what the function returns otherwise. Its output goes to the log.
        Its arguments are its own numbers of the open `files`, then `arguments`.
        """
        request = json.dumps([module, function, arguments, str(log_path)])
        send_fds(self.requests, [request.encode()], files)
        return os.waitstatus_to_exitcode(int(self.requests.recv(MESSAGE_BYTES)))


@dataclass(frozen=True)
class Libraries:
    requests: socket

    @contextmanager
    def fork_server(
        self, *modules: str, paths: Sequence[Path] = (), python: Path = Path(sys.executable)
    ) -> Iterator[ForkServer]:
        """A running server that has imported `modules`, with `paths` in front of where it looks.

        `python` is what its forks start programs of python with.
        """
        requests, theirs = socketpair(type=SOCK_SEQPACKET)
        with requests:
            with theirs:
                message = json.dumps([modules, [str(path) for path in paths], str(python)])
                send_fds(self.requests, [message.encode()], [theirs.fileno()])
            yield ForkServer(requests)


@contextmanager
def started_libraries() -> Iterator[Libraries]:
    """The running program. It has one thread, since others would not live on in a fork."""
    requests, theirs = socketpair(type=SOCK_SEQPACKET)
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.forks", str(theirs.fileno())],
        cwd=ROOT,
        env=os.environ | settings,
        pass_fds=(theirs.fileno(),),
    ):
        theirs.close()
        with requests:
            yield Libraries(requests)


@contextmanager
def forked_program(
    path: Path, run: Callable[[list[str], Path], int], *, forked: str, otherwise: str | Path
) -> Iterator[None]:
    """A program at `path` that lets this process run it: one call at a time.

    `run` gets the arguments, which have no spaces, and where to write the output; it returns the
    exit code. That is for arguments that match the pattern of sh `forked`. With others the program
    is `otherwise`. `path` is alone in its directory.
    """
    directory = path.parent
    requests, answers, log_path = (directory / name for name in ("requests", "answers", "log"))
    for pipe in (requests, answers):
        os.mkfifo(pipe)
    path.write_text(PROGRAM.format(forked=forked, otherwise=otherwise, directory=directory))
    path.chmod(0o755)

    def serve_program() -> None:
        while command := requests.read_text().split():
            code = run(command, log_path)
            answers.write_text(f"{code if code >= 0 else 1}\n")

    thread = Thread(target=serve_program)
    thread.start()
    try:
        yield
    finally:
        requests.write_text("")
        thread.join()


def start_servers(requests: socket) -> None:
    """Import the libraries, and let a fork be the server that each message asks for."""
    for module in LIBRARIES:
        importlib.import_module(module)
    while True:
        message, files, _, _ = recv_fds(requests, MESSAGE_BYTES, MOST_FILES)
        if not message:
            return
        if os.fork() == 0:
            requests.close()
            modules, paths, sys.executable = json.loads(message)
            sys.path[:0] = paths
            for module in modules:
                importlib.import_module(module)
            os._exit(serve(socket(fileno=files[0])))
        os.close(files[0])


def serve(requests: socket) -> int:
    """Answer every message with the status of its fork."""
    while True:
        message, files, _, _ = recv_fds(requests, MESSAGE_BYTES, MOST_FILES)
        if not message:
            return 0
        child = os.fork()
        if child == 0:
            requests.close()
            os._exit(answer(files, *json.loads(message)))
        for file in files:
            os.close(file)
        requests.send(str(os.waitpid(child, 0)[1]).encode())


def answer(
    files: Sequence[int], module: str, function: str, arguments: Sequence[Any], log_path: str
) -> int:
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        run = getattr(importlib.import_module(module), function)
        code: int | None = run(*files, *arguments)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code or 0


if __name__ == "__main__":
    start_servers(socket(fileno=int(sys.argv[1])))
