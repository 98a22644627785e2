"""Score token ids with vLLM, as a program that never reads text.

It loads one checkpoint into its own process, sends `{"vocab_size": count}`, and answers questions
through a socket until the other end closes it. A message is its length in 8 bytes, then either JSON
or logits, little-endian float32 [positions, vocabulary]:

- to `{"spans": [[start, ids], ...]}` it sends the logits of the positions from `start` on, span by
  span;
- to `{"prompts": [ids, ...], "max_new_tokens": count}` it sends `[[prompt, token], ...]` after each
  step of greedy decoding, and reads which prompts are finished; at last it sends `[]`.

vLLM itself returns a prompt's log-probabilities as one Python object for each token of the
vocabulary, which takes far longer than their computation. Here the model's own last layer computes
the logits from the hidden states that the model returns to vLLM.
"""

import argparse
import json
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.nn import Module
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

HEADER_BYTES = 8
PASS_SEQUENCES = 64
# vLLM gives each sequence its KV cache in blocks, the largest of 128 tokens on a CPU.
BLOCK_TOKENS = 128

Ids = tuple[int, ...]


class Scoring:
    """Hold one checkpoint in vLLM.

    It reads at most `pass_tokens` tokens in one pass, and no sequence longer than `max_length`.
    """

    def __init__(self, model_dir: Path, *, max_length: int, pass_tokens: int) -> None:
        arguments = EngineArgs(
            model=str(model_dir),
            load_format="safetensors",
            generation_config="vllm",
            skip_tokenizer_init=True,
            language_model_only=True,
            # vLLM always generates a token after its input, and needs space for it.
            max_model_len=max_length + 1,
            max_num_batched_tokens=pass_tokens + 1,
            max_num_seqs=PASS_SEQUENCES,
            # Cached tokens are not computed again, and would have no logits.
            enable_prefix_caching=False,
            enforce_eager=True,
            async_scheduling=False,
            distributed_executor_backend="uni",
            # It has no effect when the cache has a size, but vLLM requires as much free memory.
            gpu_memory_utilization=0.01,
            disable_log_stats=True,
        )
        config = arguments.create_engine_config()
        config.cache_config.kv_cache_memory_bytes = kv_cache_bytes(config, pass_tokens)
        self._engine = LLMEngine.from_vllm_config(config, disable_log_stats=True)
        (self._model,) = self._engine.apply_model(lambda model: model)
        self._pass_tokens = pass_tokens
        self.vocab_size = config.model_config.get_vocab_size()

    def logits(self, spans: Sequence[tuple[int, Ids]]) -> Iterator[torch.Tensor]:
        """Yield the float32 logits [positions, vocabulary] of each span (first position, ids)."""
        for part in self._passes(spans):
            states = self._hidden_states(list(dict.fromkeys(ids for _, ids in part)))
            for start, ids in part:
                with torch.inference_mode():
                    yield self._model.compute_logits(states[ids][start:]).float().cpu()

    def _passes(self, spans: Sequence[tuple[int, Ids]]) -> Iterator[list[tuple[int, Ids]]]:
        """Group the spans into passes that vLLM reads without cutting a span into pieces."""
        part: list[tuple[int, Ids]] = []
        num_tokens = 0
        for span in spans:
            length = len(span[1])
            if part and (num_tokens + length > self._pass_tokens or len(part) == PASS_SEQUENCES):
                yield part
                part, num_tokens = [], 0
            part.append(span)
            num_tokens += length
        yield part

    def _hidden_states(self, sequences: Sequence[Ids]) -> dict[Ids, torch.Tensor]:
        """Return the hidden states [tokens, hidden] of each of several different sequences.

        vLLM may reorder a pass. The model's own inputs tell which rows belong to which sequence.
        """
        found: dict[Ids, torch.Tensor] = {}

        def keep(_: Module, __: tuple[()], inputs: dict[str, Any], output: torch.Tensor) -> None:
            ids = inputs["input_ids"].tolist()
            positions = inputs["positions"].view(-1, len(ids))[0]  # some models have three each
            starts = (positions == 0).nonzero().flatten().tolist()
            for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
                found[tuple(ids[start:end])] = output[start:end]

        hook = self._model.register_forward_hook(keep, with_kwargs=True)
        try:
            for number, ids in enumerate(sequences):
                self._add(number, ids, max_new_tokens=1)
            while self._engine.has_unfinished_requests():
                self._engine.step()
        finally:
            hook.remove()
        if not found.keys() >= set(sequences):
            raise RuntimeError("vLLM did not read the sequences as they were asked")
        return found

    def greedy(self, prompts: Sequence[Ids], max_new_tokens: int) -> Iterator[list[list[int]]]:
        """Yield the new tokens (prompt, token) of each step, until all prompts are finished."""
        for number, ids in enumerate(prompts):
            self._add(number, ids, max_new_tokens=max_new_tokens)
        while self._engine.has_unfinished_requests():
            new = [
                [int(output.request_id), token]
                for output in self._engine.step()
                for token in output.outputs[0].token_ids
            ]
            if new:
                yield new

    def finish(self, prompts: Sequence[int]) -> None:
        """Stop these prompts. Prompts that have ended may be among them."""
        self._engine.abort_request([str(number) for number in prompts])

    def _add(self, number: int, ids: Ids, *, max_new_tokens: int) -> None:
        sampling = SamplingParams(
            temperature=0,
            max_tokens=max_new_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self._engine.add_request(str(number), {"prompt_token_ids": list(ids)}, sampling)


def kv_cache_bytes(config: VllmConfig, pass_tokens: int) -> int:
    """Return the bytes of keys and values of all tokens in a pass, in whole blocks."""
    model, parallel = config.model_config, config.parallel_config
    num_tokens = pass_tokens + 1 + (PASS_SEQUENCES + 1) * BLOCK_TOKENS
    values = model.get_num_layers(parallel) * model.get_num_kv_heads(parallel)
    return 2 * num_tokens * values * model.get_head_size() * model.dtype.itemsize


class Peer:
    """Exchange messages with the other end of the socket."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def send(self, data: bytes) -> None:
        """Send one message: length, then bytes."""
        self._stream.write(len(data).to_bytes(HEADER_BYTES, "little") + data)
        self._stream.flush()

    def receive(self) -> Any:
        """Return the next message; None when the other end has closed the socket."""
        header = self._stream.read(HEADER_BYTES)
        return json.loads(self._stream.read(int.from_bytes(header, "little"))) if header else None


def answer(scoring: Scoring, question: dict[str, Any], peer: Peer) -> None:
    """Answer one question."""
    if "spans" in question:
        for rows in scoring.logits([(start, tuple(ids)) for start, ids in question["spans"]]):
            peer.send(rows.numpy().astype("<f4", copy=False).tobytes())
        return
    prompts = [tuple(ids) for ids in question["prompts"]]
    for new in scoring.greedy(prompts, question["max_new_tokens"]):
        peer.send(as_json(new))
        scoring.finish(peer.receive())
    peer.send(as_json([]))


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description="Score token ids with vLLM, on request.")
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--max-length", type=int, required=True, help="of a sequence, in tokens")
    parser.add_argument("--pass-tokens", type=int, required=True, help="of all sequences in it")
    parser.add_argument("--socket", type=int, required=True, help="an open file descriptor")
    chosen = parser.parse_args()
    with socket.socket(fileno=chosen.socket) as connected, connected.makefile("rwb") as stream:
        peer = Peer(stream)
        scoring = Scoring(
            chosen.model_dir, max_length=chosen.max_length, pass_tokens=chosen.pass_tokens
        )
        peer.send(as_json({"vocab_size": scoring.vocab_size}))
        while (question := peer.receive()) is not None:
            answer(scoring, question, peer)


if __name__ == "__main__":
    main()
