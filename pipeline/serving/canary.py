"""Does the server run the weights it was given? Its greedy text against a reference engine's.

A wrong bit order or a wrong kernel shows as other text at once; small differences of arithmetic
flip a word now and then, where two words are almost equally likely.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.engines.scorer import Scorer
from pipeline.serving.server import Server

# What a detokenizer writes for bytes that are not a character yet.
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Prompts:
    """What is asked, as token ids; `texts` is the same for servers that take text only."""

    tokenizer: Any
    ids: Sequence[Sequence[int]]

    @property
    def texts(self) -> Sequence[str]:
        return [self.tokenizer.decode(it, skip_special_tokens=True) for it in self.ids]


@dataclass(frozen=True)
class Reference:
    """What an engine that scores writes after the prompts, and the context it has in tokens."""

    engine: str
    texts: Sequence[str]
    context_tokens: int


def reference_of(scorer: Scorer, prompts: Prompts, *, max_new_tokens: int) -> Reference:
    texts = reference_texts(scorer, prompts.tokenizer, prompts.ids, max_new_tokens=max_new_tokens)
    return Reference(scorer.backend, texts, scorer.max_length)


def reference_texts(
    scorer: Scorer, tokenizer: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int
) -> list[str]:
    """The greedy continuation of each prompt by a loaded model, up to its end of text."""
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
    """The same from a server, one request at a time. Raises FailureError."""
    return [
        server.complete(prompt, max_tokens=max_new_tokens).rstrip(INCOMPLETE) for prompt in prompts
    ]


def _continuation(tokenizer: Any, prompt: Sequence[int], new: Sequence[int]) -> str:
    """What the new ids add to the text: some tokenizers write a first token differently."""
    before: str = tokenizer.decode(prompt, skip_special_tokens=True)
    whole: str = tokenizer.decode([*prompt, *new], skip_special_tokens=True)
    return whole.removeprefix(before).rstrip(INCOMPLETE)
