"""Define the interface of the engines that score tokens, and the steps that all of them share.

An engine takes token ids and returns logits. It never reads text, so that all engines score the
same tokens. Sequences are sorted before they are grouped into passes, so that the order of the
requests changes no result. Prefixes that sequences share are computed once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import FailureError, InputError
from pipeline.core.progress import track
from pipeline.engines.distance import log_softmax
from pipeline.engines.token_forest import Forest, Span, forests
from pipeline.records.evaluation import Engine

LOGITS_BUDGET_BYTES = 1 << 29

FOREST_TOKENS = 32
"""Most nodes of a forest, for each sequence of the batch size: attention slows down with more."""

MAX_SEQUENCES = 64
"""Most sequences in one pass."""

Logits = npt.NDArray[np.float32]
Finished = Callable[[Sequence[int]], bool]


class BrokenModelError(FailureError):
    """Report that a model's logits are not finite numbers, so that no score has a meaning."""


@dataclass(frozen=True)
class Answer:
    """Hold the log-probability of a continuation in nats, and whether greedy decoding gives it."""

    logprob: float
    is_greedy: bool


class Sharing(Protocol):
    """Compute shared prefixes once, for sequences of at most `max_shared_length` tokens."""

    @property
    def max_shared_length(self) -> int: ...

    def forest_logits(self, forest: Forest) -> Logits:
        """Return the logits [wanted nodes, vocabulary] of a forest."""
        ...


class Scorer(Protocol):
    """Score with one loaded model.

    `label` names it in errors; `max_length` is its context in tokens.
    """

    @property
    def label(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def backend_version(self) -> str: ...
    @property
    def device(self) -> str:
        """Return cpu or cuda."""
        ...

    @property
    def vocab_size(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def sharing(self) -> Sharing | None:
        """Return the interface for shared prefixes; None where the engine cannot share."""
        ...

    def logits(self, batch: Sequence[Span]) -> list[Logits]:
        """Return the float32 logits [positions from `start` on, vocabulary] of each span."""
        ...

    def greedy(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, finished: Finished
    ) -> list[list[int]]:
        """Continue each prompt with its most likely tokens.

        A prompt ends after the token at which `finished`, called with its new tokens, is true, or
        after `max_new_tokens`.
        """
        ...

    def close(self) -> None:
        """Release the model. The scorer cannot be used afterwards."""
        ...


def engine_of(scorer: Scorer) -> Engine:
    """Return the engine of a scorer. Its model need not be loaded."""
    return Engine(scorer.backend, scorer.backend_version, scorer.device)


class LazyScorer:
    """Load a Scorer when it is first used.

    The first use raises the errors of `open_scorer`. A closed scorer loads again when it is used.
    """

    def __init__(
        self,
        open_scorer: Callable[[], Scorer],
        *,
        label: str,
        backend: str,
        backend_version: str,
        device: str,
    ) -> None:
        self.label = label
        self.backend = backend
        self.backend_version = backend_version
        self.device = device
        self._open = open_scorer
        self._opened: Scorer | None = None

    @property
    def _scorer(self) -> Scorer:
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    @cached_property
    def vocab_size(self) -> int:
        return self._scorer.vocab_size

    @cached_property
    def max_length(self) -> int:
        return self._scorer.max_length

    @property
    def sharing(self) -> Sharing | None:
        return self._scorer.sharing

    def logits(self, batch: Sequence[Span]) -> list[Logits]:
        return self._scorer.logits(batch)

    def greedy(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, finished: Finished
    ) -> list[list[int]]:
        return self._scorer.greedy(prompts, max_new_tokens=max_new_tokens, finished=finished)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None


def continuation_answers(
    scorer: Scorer, pairs: Sequence[tuple[list[int], list[int]]], *, batch_size: int
) -> list[Answer]:
    """Return the answer for each pair of context ids and continuation ids.

    A pair that is too long loses the beginning of its context, as in lm-eval. Pairs with the same
    input are computed once. Raises InputError for a continuation that is empty or longer than the
    model's context, BrokenModelError for logits that are not finite.
    """
    spans = [_span(scorer, context, continuation) for context, continuation in pairs]
    users: dict[Span, list[int]] = {}
    for number, span in enumerate(spans):
        users.setdefault(span, []).append(number)
    answers: dict[int, Answer] = {}
    for span, rows in _span_logits(scorer, list(users), batch_size=batch_size):
        log_probabilities = log_softmax(rows)
        top_ids = log_probabilities.argmax(axis=-1)
        for number in users[span]:
            targets = np.asarray(pairs[number][1])
            chosen = log_probabilities[np.arange(len(targets)), targets]
            answers[number] = Answer(
                logprob=float(chosen.sum()), is_greedy=bool((top_ids == targets).all())
            )
    return [answers[number] for number in range(len(pairs))]


def _span(scorer: Scorer, context: list[int], continuation: list[int]) -> Span:
    if not 0 < len(continuation) <= scorer.max_length:
        raise InputError(
            f"{scorer.label}: a continuation of {len(continuation)} tokens; expected 1 to "
            f"{scorer.max_length}, the model's context: correct the task"
        )
    inputs = (context + continuation)[-(scorer.max_length + 1) : -1]
    return Span(ids=tuple(inputs), start=len(inputs) - len(continuation))


def _span_logits(
    scorer: Scorer, spans: Sequence[Span], *, batch_size: int
) -> Iterator[tuple[Span, Logits]]:
    """Compute each span, in forests where the engine can, else in batches of similar length."""
    passes: list[Iterator[tuple[Span, Logits]]] = []
    alone = set(spans)
    if sharing := scorer.sharing:
        short = [span for span in spans if len(span.ids) <= sharing.max_shared_length]
        packed = forests(
            short,
            max_nodes=min(FOREST_TOKENS * batch_size, _max_positions(scorer)),
            max_sequences=MAX_SEQUENCES,
        )
        passes += [_forest_rows(scorer, sharing, forest) for forest in packed]
        alone -= set(short)
    by_length = sorted(alone, key=lambda span: (-len(span.ids), span))
    batches = _batches(
        by_length, batch_size=_fitting_batch_size(scorer, by_length, batch_size=batch_size)
    )
    passes += [_batch_rows(scorer, batch) for batch in batches]
    for rows in track(passes, f"{scorer.label}: scoring", total=len(passes)):
        yield from rows


def _forest_rows(scorer: Scorer, sharing: Sharing, forest: Forest) -> Iterator[tuple[Span, Logits]]:
    rows = sharing.forest_logits(forest)
    _require_finite(scorer, rows)
    row_of = {node: row for row, node in enumerate(forest.wanted)}
    for span, path in zip(forest.spans, forest.paths, strict=True):
        yield span, rows[[row_of[node] for node in path[span.start :]]]


def _batch_rows(scorer: Scorer, batch: Sequence[Span]) -> Iterator[tuple[Span, Logits]]:
    for span, rows in zip(batch, scorer.logits(batch), strict=True):
        _require_finite(scorer, rows)
        yield span, rows


def window_logits(
    scorer: Scorer, windows: Sequence[Sequence[int]], *, batch_size: int
) -> Iterator[Logits]:
    """Compute the logits [tokens, vocabulary] of each window; only one batch is in memory.

    Raises BrokenModelError for logits that are not finite.
    """
    spans = [Span(ids=tuple(window), start=0) for window in windows]
    for batch in _batches(
        spans, batch_size=_fitting_batch_size(scorer, spans, batch_size=batch_size)
    ):
        for _, rows in _batch_rows(scorer, batch):
            yield rows


def _batches(spans: Sequence[Span], *, batch_size: int) -> Iterator[list[Span]]:
    remaining = iter(spans)
    while batch := list(islice(remaining, batch_size)):
        yield batch


def _fitting_batch_size(scorer: Scorer, spans: Sequence[Span], *, batch_size: int) -> int:
    """Return `batch_size`, or less where the logits of the longest spans need too much memory."""
    longest = max((len(span.ids) for span in spans), default=1)
    return max(1, min(batch_size, _max_positions(scorer) // longest))


def _max_positions(scorer: Scorer) -> int:
    """Return the number of positions whose logits may be in memory at the same time."""
    return max(1, LOGITS_BUDGET_BYTES // (4 * scorer.vocab_size))


def _require_finite(scorer: Scorer, rows: Logits) -> None:
    if not np.isfinite(rows).all():
        raise BrokenModelError(
            f"{scorer.label}: {scorer.backend} computed logits that are not finite numbers; the "
            "model is broken: change its recipe or remove it from params.yaml"
        )
