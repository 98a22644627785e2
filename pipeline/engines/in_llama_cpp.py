"""Score and tokenize with llama.cpp in this process, through its batch interface.

A GGUF file is scored on the token ids of the base's tokenizer, with several sequences in one
decode. The key-value cache is float32, so that only the weights differ from the base.

The interface is llama.h: https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import llama_cpp
import numpy as np

from pipeline.core.errors import FailureError, InputError
from pipeline.engines.scorer import MAX_SEQUENCES, Finished, Logits
from pipeline.engines.token_forest import Forest, Span
from pipeline.gguf.files import captured_log

DECODE_TOKENS = 512
"""Most tokens in one decode, unless one sequence is longer: the cost of attention is quadratic.

A longer decode goes through the model in parts of this size, so that buffers stay small.
"""

LOG_LINES = 2
GGML_TYPE_F32 = 0


class LlamaCppScorer:
    """Offer a GGUF file in llama.cpp as a Scorer, with its own tokenizer."""

    backend = "llama.cpp"
    backend_version = f"llama-cpp-python {llama_cpp.__version__}"
    device = "cuda" if llama_cpp.llama_supports_gpu_offload() else "cpu"

    def __init__(self, path: Path, *, label: str) -> None:
        """Load the file; `label` names the model in errors.

        Raises InputError when llama.cpp cannot read it.
        """
        self.label = label
        self._open = ExitStack()
        self._log = self._open.enter_context(captured_log())
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            os.fsencode(path), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            self._open.close()
            raise InputError(
                f"{path}: llama.cpp cannot read it ({self._last_log_lines()}); delete the file and "
                "make it again"
            )
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab_size = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
        self.max_length = int(llama_cpp.llama_model_n_ctx_train(self._model))
        self.max_shared_length = self.max_length
        self._context: Any = None
        self._batch: Any = None
        self._capacity = 0

    @property
    def sharing(self) -> Self:
        """Return itself: llama.cpp shares prefixes of any model."""
        return self

    def tokenize(self, text: str) -> list[int]:
        """Return llama.cpp's ids of a text, with the BOS or EOS that it adds.

        Markers such as <s> in the text become their token, as in Hugging Face's tokenizers. Raises
        FailureError when llama.cpp cannot tokenize the text.
        """
        data = text.encode("utf-8")
        room = len(data) + 8
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, room, True, True)
        if count < 0:
            raise FailureError(f"{self.label}: llama.cpp cannot tokenize {text[:40]!r}")
        return list(ids[:count])

    def forest_logits(self, forest: Forest) -> Logits:
        """Return the logits [wanted nodes, vocabulary] of a forest; raises FailureError.

        Each node is in the cache once, for all its sequences.
        """
        sequences: list[list[int]] = [[] for _ in forest.ids]
        for sequence, path in enumerate(forest.paths):
            for node in path:
                sequences[node].append(sequence)
        wanted = set(forest.wanted)
        self._start(num_tokens=len(forest.ids))
        for node, token in enumerate(forest.ids):
            self._add(token, forest.positions[node], sequences[node], wanted=node in wanted)
        return self._decode(len(wanted))

    def logits(self, batch: Sequence[Span]) -> list[Logits]:
        """Return the logits [positions from `start` on, vocabulary] of spans; raises FailureError.

        One decode takes as many spans as fit in `DECODE_TOKENS`.
        """
        rows: list[Logits] = []
        for part in _parts(batch):
            self._start(num_tokens=sum(len(span.ids) for span in part))
            for sequence, span in enumerate(part):
                for position, token in enumerate(span.ids):
                    self._add(token, position, [sequence], wanted=position >= span.start)
            counts = [len(span.ids) - span.start for span in part]
            rows += np.split(self._decode(sum(counts)), np.cumsum(counts)[:-1])
        return rows

    def greedy(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, finished: Finished
    ) -> list[list[int]]:
        """Continue up to `MAX_SEQUENCES` prompts together, one token of each in a decode.

        Raises FailureError.
        """
        new: list[list[int]] = []
        for first in range(0, len(prompts), MAX_SEQUENCES):
            part = prompts[first : first + MAX_SEQUENCES]
            new += self._continue(part, max_new_tokens=max_new_tokens, finished=finished)
        return new

    def _continue(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, finished: Finished
    ) -> list[list[int]]:
        new: list[list[int]] = [[] for _ in prompts]
        self._start(num_tokens=sum(len(prompt) + max_new_tokens for prompt in prompts))
        for sequence, prompt in enumerate(prompts):
            for position, token in enumerate(prompt):
                self._add(token, position, [sequence], wanted=position == len(prompt) - 1)
        active = list(range(len(prompts)))
        while active:
            last = self._decode(len(active))
            for sequence, row in zip(active, last, strict=True):
                new[sequence].append(int(row.argmax()))
            active = [
                sequence
                for sequence in active
                if len(new[sequence]) < max_new_tokens and not finished(new[sequence])
            ]
            for sequence in active:
                position = len(prompts[sequence]) + len(new[sequence]) - 1
                self._add(new[sequence][-1], position, [sequence], wanted=True)
        return new

    def close(self) -> None:
        """Free the model and its context. Closing twice is allowed."""
        self._free_context()
        if self._model:
            llama_cpp.llama_model_free(self._model)
            self._model = None
        self._open.close()

    def _last_log_lines(self) -> str:
        return " | ".join(self._log[-LOG_LINES:])

    def _start(self, *, num_tokens: int) -> None:
        """Start a batch with an empty cache that has room for `num_tokens`."""
        if num_tokens > self._capacity:
            self._free_context()
            self._make_context(max(num_tokens, DECODE_TOKENS))
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._batch.n_tokens = 0

    def _make_context(self, capacity: int) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = capacity
        params.n_ubatch = DECODE_TOKENS
        params.n_seq_max = MAX_SEQUENCES
        params.kv_unified = True
        params.type_k = params.type_v = GGML_TYPE_F32
        params.n_threads = params.n_threads_batch = len(os.sched_getaffinity(0))
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise FailureError(
                f"{self.label}: llama.cpp cannot make a context of {capacity} tokens "
                f"({self._last_log_lines()}); lower evaluate.batch_size or evaluate.window_tokens"
            )
        self._batch = llama_cpp.llama_batch_init(capacity, 0, MAX_SEQUENCES)
        self._capacity = capacity

    def _free_context(self) -> None:
        if self._context:
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_free(self._context)
            self._context = None
            self._capacity = 0

    def _add(self, token: int, position: int, sequences: Sequence[int], *, wanted: bool) -> None:
        """Add a token of `sequences` to the batch; `wanted` asks for its logits."""
        batch, index = self._batch, self._batch.n_tokens
        batch.token[index] = token
        batch.pos[index] = position
        batch.n_seq_id[index] = len(sequences)
        for place, sequence in enumerate(sequences):
            batch.seq_id[index][place] = sequence
        batch.logits[index] = wanted
        batch.n_tokens = index + 1

    def _decode(self, num_wanted: int) -> Logits:
        """Run the batch; return the float32 logits [wanted positions, vocabulary] in its order."""
        code = llama_cpp.llama_decode(self._context, self._batch)
        if code != 0:
            raise FailureError(
                f"{self.label}: llama_decode returned {code} ({self._last_log_lines()})"
            )
        self._batch.n_tokens = 0
        pointer = llama_cpp.llama_get_logits(self._context)
        rows: Logits = np.ctypeslib.as_array(pointer, shape=(num_wanted, self.vocab_size)).copy()
        return rows


def _parts(batch: Sequence[Span]) -> Iterator[list[Span]]:
    """Cut a batch into parts that fit one decode."""
    part: list[Span] = []
    tokens = 0
    for span in batch:
        if part and (tokens + len(span.ids) > DECODE_TOKENS or len(part) == MAX_SEQUENCES):
            yield part
            part, tokens = [], 0
        part.append(span)
        tokens += len(span.ids)
    yield part
