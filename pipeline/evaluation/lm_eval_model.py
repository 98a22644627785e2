"""Offer a Scorer as a model of lm-eval: text in, log-probabilities and greedy text out.

Text becomes token ids exactly as in lm-eval's own Hugging Face model, always with the base's
tokenizer, so that a task's score is the one a plain `lm_eval` run of the same weights reports.
Sampling is not offered: an evaluation must come out the same twice.
"""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from pipeline.checkpoint.chat_rendering import render_chat
from pipeline.core.errors import InputError
from pipeline.core.progress import note, track
from pipeline.engines.scorer import Scorer, continuation_answers

MAX_NEW_TOKENS = 256
"""Default number of new tokens; the same as in lm-eval's own models."""

Pair = tuple[list[int], list[int]]


class LmEvalModel(TemplateLM):  # type: ignore[misc]
    """Answers lm-eval's three kinds of requests with one Scorer and the base's tokenizer."""

    def __init__(self, scorer: Scorer, tokenizer: Any, *, batch_size: int) -> None:
        super().__init__()
        self._scorer = scorer
        self.tokenizer = tokenizer
        self._batch_size = batch_size
        # The choices of a question ask for the ids of its prompt one after the other.
        self._encode = lru_cache(maxsize=64)(tokenizer.encode)

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """Return token ids; by default with the tokenizer's BOS, unless the text begins with it."""
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self._prefix)
        return list(self._encode(string, add_special_tokens=add_special_tokens))

    @cached_property
    def _prefix(self) -> str:
        return str(self.tokenizer.decode(self.prefix_token_id))

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: object
    ) -> list[tuple[float, bool]]:
        pairs = [(context, target) for _, context, target in requests]
        self._note_cuts([len(context) + len(target) - 1 for context, target in pairs])
        answers = self._answers(pairs)
        return [(answer.logprob, answer.is_greedy) for answer in answers]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Score each text alone, in windows of the model's context that do not overlap."""
        pairs: list[Pair] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            windows = self._rolling_windows(request.args[0])
            pairs += windows
            owners += [number] * len(windows)
        totals = [0.0] * len(requests)
        for owner, answer in zip(owners, self._answers(pairs), strict=True):
            totals[owner] += answer.logprob
        return totals

    def _note_cuts(self, lengths: Sequence[int]) -> None:
        too_long = sum(length > self._scorer.max_length for length in lengths)
        if too_long:
            note(
                f"{self._scorer.label}: {too_long} of {len(lengths)} requests are longer than the "
                f"model's context of {self._scorer.max_length} tokens: their beginnings are cut, "
                "as in lm-eval; use fewer examples, or a task of shorter documents"
            )

    def _rolling_windows(self, text: str) -> list[Pair]:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self._scorer.max_length,
            context_len=1,
        )
        return [make_disjoint_window(window) for window in windows]

    def _answers(self, pairs: Sequence[Pair]) -> Any:
        return continuation_answers(self._scorer, pairs, batch_size=self._batch_size)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return greedy text up to a stop sequence. Raises InputError for a sampling task."""
        prompts = {number: self._prompt(*request.args) for number, request in enumerate(requests)}
        self._note_cuts([len(ids) + max_new_tokens for ids, max_new_tokens, _ in prompts.values()])
        by_settings: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for number, (_, max_new_tokens, stops) in prompts.items():
            by_settings.setdefault((max_new_tokens, stops), []).append(number)
        batches = [
            (settings, batch)
            for settings, numbers in by_settings.items()
            for batch in self._batches(numbers, {number: prompts[number][0] for number in numbers})
        ]
        texts: dict[int, str] = {}
        label = f"{self._scorer.label}: generating"
        for (max_new_tokens, stops), batch in track(batches, label, total=len(batches)):
            new = self._scorer.greedy(
                [
                    prompts[number][0][max_new_tokens - self._scorer.max_length :]
                    for number in batch
                ],
                max_new_tokens=max_new_tokens,
                finished=lambda ids, stops=stops: self._is_finished(ids, stops),  # type: ignore[misc]
            )
            for number, ids in zip(batch, new, strict=True):
                text = self.tokenizer.decode(ids, skip_special_tokens=True)
                texts[number] = postprocess_generated_text(text, list(stops), None)
        return [texts[number] for number in range(len(requests))]

    def _prompt(
        self, context: str, settings: dict[str, Any]
    ) -> tuple[list[int], int, tuple[str, ...]]:
        """Return the prompt's token ids, the most new tokens, and the stop sequences."""
        normal = normalize_gen_kwargs(settings, MAX_NEW_TOKENS)
        if normal.get("do_sample") or normal.get("temperature"):
            raise InputError(
                "generation_kwargs: the task asks for sampling; only greedy answers come out the "
                "same twice: set do_sample to false"
            )
        eos = self.tokenizer.decode(self.eot_token_id)
        stops = handle_stop_sequences(normal["until"], eos=eos)
        max_new_tokens = normal["max_gen_toks"]
        if max_new_tokens >= self._scorer.max_length:
            raise InputError(
                f"generation_kwargs: max_gen_toks = {max_new_tokens}: expected less than the "
                f"model's context of {self._scorer.max_length}"
            )
        return self.tok_encode(context), max_new_tokens, tuple(stops)

    def _batches(self, numbers: Sequence[int], ids: dict[int, list[int]]) -> list[list[int]]:
        """Put prompts of similar length together."""
        ordered = sorted(numbers, key=lambda number: (-len(ids[number]), ids[number]))
        return [
            ordered[first : first + self._batch_size]
            for first in range(0, len(ordered), self._batch_size)
        ]

    def _is_finished(self, ids: Sequence[int], stops: Sequence[str]) -> bool:
        if ids[-1] == self.eot_token_id:
            return True
        text = self.tokenizer.decode(ids)
        return any(stop in text for stop in stops)


def chat_text(
    tokenizer: Any, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
) -> str:
    """Write a conversation by the tokenizer's own template, open for the model's turn.

    Raises InputError when there is no template or it refuses the conversation.
    """
    try:
        return str(
            render_chat(
                tokenizer,
                chat_history,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )
    except Exception as error:  # a template is a program and can fail in any way
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise InputError(
            f"the base's chat template cannot write a task's conversation: {reason}; set chat to "
            "false in eval/suites.yaml"
        ) from error
