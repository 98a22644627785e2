"""Score the packed files of a checkpoint in vLLM, with the kernels that serve them.

vLLM runs as a program of the serving environment. It loads the model as a server does: on the GPU
where there is one, in the type of the checkpoint's weights. Token ids and logits pass through a
socket, one batch at a time.
"""

import json
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pipeline.checkpoint.model_config import context_tokens, model_config
from pipeline.core.environments import (
    ENVIRONMENT,
    OFFLINE,
    SERVE_PYTHON,
    VLLM_FOR_CPU,
    installed_vllm,
    root_cause,
)
from pipeline.core.errors import FailureError, InputError
from pipeline.core.process import Daemon, exit_text, last_lines
from pipeline.core.progress import note
from pipeline.engines.scorer import Finished, Logits
from pipeline.engines.token_forest import Span
from pipeline.params.params import PackedJudge

PROGRAM = ("-m", "quantline_vllm.score")
PASS_TOKENS = 8192
"""Most tokens in one pass, and the size of vLLM's KV cache. No sequence can be longer."""

# https://docs.vllm.ai/en/latest/configuration/env_vars/
IN_ONE_PROCESS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # vLLM wants a context with one token more than the model can read.
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
}
HEADER_BYTES = 8
INSTEAD = f"evaluate.packed_judge = {PackedJudge.TRANSFORMERS} scores it without vLLM"


class VllmScorer:
    """Offer a checkpoint in vLLM as a Scorer. Each sequence is computed alone."""

    backend = PackedJudge.VLLM.value
    sharing = None

    def __init__(self, model_dir: Path, *, label: str) -> None:
        """Load the model; `label` names it in errors.

        Raises FailureError with vLLM's reason when it cannot be loaded.
        """
        self.label = label
        self.backend_version = vllm_version()
        self.device = vllm_device()
        self.max_length = context_tokens(model_config(model_dir))
        self._longest = min(self.max_length, PASS_TOKENS)
        note(f"{label}: starting vLLM")
        with ExitStack() as opened:
            self._socket, theirs = socket.socketpair()
            opened.enter_context(self._socket)
            self._answers = opened.enter_context(self._socket.makefile("rb"))
            scratch_dir = Path(opened.enter_context(TemporaryDirectory()))
            with theirs:
                program = _program(model_dir, theirs, scratch_dir, max_length=self._longest)
                self._program = opened.enter_context(program)
            self.vocab_size = int(json.loads(self._received())["vocab_size"])
            self._opened = opened.pop_all()

    def logits(self, batch: Sequence[Span]) -> list[Logits]:
        """Return the float32 logits [positions from `start` on, vocabulary] of each span.

        Raises InputError for a sequence that is too long for one pass, FailureError when vLLM ends.
        """
        self._require_fitting([span.ids for span in batch])
        self._send({"spans": [(span.start, span.ids) for span in batch]})
        return [
            np.frombuffer(self._received(), dtype="<f4").reshape(-1, self.vocab_size) for _ in batch
        ]

    def greedy(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, finished: Finished
    ) -> list[list[int]]:
        """Continue each prompt, and tell vLLM after every step which prompts are finished.

        Raises the errors of `logits`.
        """
        self._require_fitting(prompts)
        new: list[list[int]] = [[] for _ in prompts]
        self._send({"prompts": list(map(list, prompts)), "max_new_tokens": max_new_tokens})
        while step := json.loads(self._received()):
            for prompt, token in step:
                new[prompt].append(token)
            self._send([prompt for prompt, _ in step if finished(new[prompt])])
        return new

    def close(self) -> None:
        """End vLLM. Closing twice is allowed."""
        self._opened.close()

    def _require_fitting(self, sequences: Sequence[Sequence[int]]) -> None:
        longest = max(map(len, sequences))
        if longest > self._longest:
            raise InputError(
                f"{self.label}: a sequence of {longest} tokens; expected at most {self._longest}, "
                f"which vLLM reads in one pass here; {INSTEAD}"
            )

    def _send(self, question: object) -> None:
        data = json.dumps(question).encode()
        try:
            self._socket.sendall(len(data).to_bytes(HEADER_BYTES, "little") + data)
        except ConnectionError as error:
            raise self._ended() from error

    def _received(self) -> bytes:
        """Read one message: length, then bytes. Raises FailureError when vLLM has ended."""
        return self._exactly(int.from_bytes(self._exactly(HEADER_BYTES), "little"))

    def _exactly(self, num_bytes: int) -> bytes:
        try:
            data = self._answers.read(num_bytes)
        except ConnectionError as error:
            raise self._ended() from error
        if len(data) < num_bytes:
            raise self._ended()
        return data

    def _ended(self) -> FailureError:
        """Make the error for a vLLM that ended, with the first error or the end of its log."""
        how = exit_text(self._program.wait())
        log_path = self._program.log_path
        cause = root_cause(log_path.read_text(errors="replace")) or last_lines(log_path)
        return FailureError(f"{self.label}: vLLM {how}: {cause}; {INSTEAD}")


def _program(model_dir: Path, peer: socket.socket, scratch_dir: Path, *, max_length: int) -> Daemon:
    """Start vLLM with a checkpoint; it answers on the other end of `peer`."""
    return Daemon(
        [
            *(SERVE_PYTHON, *PROGRAM, model_dir),
            f"--max-length={max_length}",
            f"--pass-tokens={PASS_TOKENS}",
            f"--socket={peer.fileno()}",
        ],
        log_path=scratch_dir / "vllm.log",
        environment={
            **(OFFLINE | ENVIRONMENT | IN_ONE_PROCESS),
            "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
            "TMPDIR": str(scratch_dir),
        },
        pass_fds=(peer.fileno(),),
    )


def vllm_version() -> str:
    """Return the installed build of vLLM. Raises InputError when there is none."""
    vllm = installed_vllm()
    return f"{vllm.metadata['Name']} {vllm.version}"


def vllm_device() -> str:
    """Return cuda or cpu, the device of the installed vLLM. Raises InputError without vLLM."""
    return "cpu" if installed_vllm().metadata["Name"] == VLLM_FOR_CPU else "cuda"
