"""The parity check: greedy texts of a server against those of a reference engine.

It shows whether the server runs the weights it was given. A wrong bit order or a wrong kernel
changes every text. Small differences of arithmetic change a word now and then, where two words are
almost equally likely.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.engines.scorer import Scorer
from pipeline.serving.server import Server

# Detokenizers write this for bytes that are not a whole character yet.
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Prompts:
    """Hold prompts as token ids; `texts` are the same prompts, for servers that take text only."""

    tokenizer: Any
    ids: Sequence[Sequence[int]]

    @property
    def texts(self) -> Sequence[str]:
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in self.ids]


@dataclass(frozen=True)
class Reference:
    """Hold the texts of the reference engine and the length of its context in tokens."""

    engine: str
    texts: Sequence[str]
    context_tokens: int


def reference_of(scorer: Scorer, prompts: Prompts, *, max_new_tokens: int) -> Reference:
    """Let the engine that scored a model continue each prompt."""
    texts = reference_texts(scorer, prompts.tokenizer, prompts.ids, max_new_tokens=max_new_tokens)
    return Reference(scorer.backend, texts, scorer.max_length)


def reference_texts(
    scorer: Scorer, tokenizer: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int
) -> list[str]:
    """Continue each prompt greedily with a loaded model, up to its end of text."""
    continuations = scorer.greedy(
        prompts,
        max_new_tokens=max_new_tokens,
        finished=lambda new: new[-1] == tokenizer.eos_token_id,
    )
    return [
        _continuation(tokenizer, prompt, new)
        for prompt, new in zip(prompts, continuations, strict=True)
    ]


def served_texts(
    server: Server, prompts: Sequence[Sequence[int] | str], *, max_new_tokens: int
) -> list[str]:
    """Continue each prompt greedily with a server, one after the other. Raises FailureError."""
    return [
        server.complete(prompt, max_tokens=max_new_tokens).rstrip(INCOMPLETE) for prompt in prompts
    ]


def _continuation(tokenizer: Any, prompt: Sequence[int], new: Sequence[int]) -> str:
    """Return the text that the new ids add; some tokenizers write a first token differently."""
    before: str = tokenizer.decode(prompt, skip_special_tokens=True)
    whole: str = tokenizer.decode([*prompt, *new], skip_special_tokens=True)
    return whole.removeprefix(before).rstrip(INCOMPLETE)
