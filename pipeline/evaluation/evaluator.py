"""Evaluate one model after another on the same held-out text and the same tasks.

Token ids, requests and their digests do not depend on a model and are made once. Results of earlier
runs come from the score cache. The stage decides which models are evaluated.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import InputError
from pipeline.core.progress import track
from pipeline.core.workspace import KEPT_LOGITS_BYTES
from pipeline.engines.distance import (
    Floats,
    WindowDistance,
    negative_log_likelihoods,
    perplexity,
    summarize,
    window_distance,
)
from pipeline.engines.scorer import BrokenModelError, Logits, Scorer, engine_of, window_logits
from pipeline.evaluation.held_out import HeldOut
from pipeline.evaluation.lm_eval_model import LmEvalModel
from pipeline.evaluation.score_cache import ScoreCache, ScoredText
from pipeline.evaluation.task_runs import Rows, Stopping, TaskQuestions, run_tasks, task_scores
from pipeline.params.params import EvaluateParams
from pipeline.records.evaluation import Distance, Engine, TaskScore

SHOWN_TOKENS = 24
"""Number of tokens of the text that is shown where KL is largest."""


@dataclass(frozen=True)
class ScoredModel:
    """Name a model to be evaluated by the digest of its files, and the engine that scores it."""

    digest: str
    scorer: Scorer

    @property
    def identity(self) -> tuple[str, Engine]:
        """Return the facts that its logits depend on."""
        return self.digest, engine_of(self.scorer)


@dataclass(frozen=True)
class EvaluationResult:
    """Hold what one model scored; `distance` is null where it was compared with no reference."""

    scores: dict[str, TaskScore]
    documents: Rows
    perplexity: float
    distance: Distance | None


@dataclass(frozen=True)
class Evaluator:
    """Evaluate models on one held-out text and one set of tasks.

    `base_digest` stands for the tokenizer. The base's model has logits for `vocab_size` tokens.
    Results are kept in `cache_dir`.
    """

    base_digest: str
    tokenizer: Any
    vocab_size: int
    held_out: HeldOut
    questions: Sequence[TaskQuestions]
    params: EvaluateParams
    cache_dir: Path

    def evaluate(
        self,
        model: ScoredModel,
        reference: ScoredModel | None,
        *,
        is_reference: bool = False,
        stopping: Stopping | None = None,
    ) -> EvaluationResult:
        """Return the scores, the perplexity, and the distance to `reference` where there is one.

        The cache keeps the logits of `reference`, and those of a model that `is_reference` for
        others, so that later processes need not load it. `stopping` may end the tasks before their
        last document. The reference is closed before the model is loaded; where its logits are too
        many to keep, both are loaded, and the reference is closed before the tasks. Raises
        BrokenModelError for logits that are not finite, InputError for windows that are longer than
        the model's context.
        """
        cache = self._cache_of(model)
        text = cache.text(
            self.held_out.token_ids_sha256,
            reference.identity if reference else None,
            lambda: self._score_text(model, reference, is_reference=is_reference),
        )
        if reference is not None:
            reference.scorer.close()
        rows = run_tasks(
            self.questions,
            LmEvalModel(model.scorer, self.tokenizer, batch_size=self.params.batch_size),
            cached=cache.rows,
            stopping=stopping,
        )
        return EvaluationResult(
            task_scores(self.questions, rows), rows, text.perplexity, text.distance
        )

    def _cache_of(self, model: ScoredModel) -> ScoreCache:
        facts = (self.base_digest, str(self.params.batch_size))
        return ScoreCache(self.cache_dir, model.scorer, model.digest, facts)

    def _score_text(
        self, model: ScoredModel, reference: ScoredModel | None, *, is_reference: bool
    ) -> ScoredText:
        base_windows: Iterable[Logits] | None = None
        if reference is not None:
            base_windows = self._window_logits(reference, keep=True)
            # Another engine must find the memory free when it starts.
            reference.scorer.close()
        own_windows = self._window_logits(model, keep=is_reference)
        return score_windows(
            self.held_out.windows,
            own_windows,
            base_windows,
            self.tokenizer,
            label=model.scorer.label,
        )

    def _window_logits(self, model: ScoredModel, *, keep: bool) -> Iterable[Logits]:
        """Return the logits [tokens, vocabulary] of each window.

        Kept logits come from the cache, and are computed when they are not there; logits that are
        not kept are computed when they are asked for. The model is loaded only to compute.
        """
        windows = self.held_out.windows

        def compute() -> Iterator[Logits]:
            if self.params.window_tokens > model.scorer.max_length:
                raise InputError(
                    f"evaluate.window_tokens = {self.params.window_tokens}: expected at most "
                    f"{model.scorer.max_length}, the model's context"
                )
            yield from window_logits(model.scorer, windows, batch_size=self.params.batch_size)

        shape = (len(windows), self.params.window_tokens, self.vocab_size)
        if not keep or math.prod(shape) * np.dtype(np.float32).itemsize > KEPT_LOGITS_BYTES:
            return compute()
        return self._cache_of(model).logits(self.held_out.token_ids_sha256, shape, compute)


def score_windows(
    windows: Sequence[list[int]],
    own: Iterable[Logits],
    base: Iterable[Logits] | None,
    tokenizer: Any,
    *,
    label: str,
) -> ScoredText:
    """Return the perplexity on windows of token ids, and the distance to `base` where it is given.

    `own` and `base` are the logits [tokens, vocabulary] of each window; they are read in turn, and
    only a few numbers for each token stay in memory. Raises BrokenModelError where a perplexity is
    beyond what a number can hold.
    """
    losses: list[Floats] = []
    distances: list[WindowDistance] = []
    triples = zip(windows, own, repeat(None) if base is None else base, strict=False)
    for ids, own_logits, base_logits in track(triples, f"{label}: windows", total=len(windows)):
        if base_logits is None:
            losses.append(negative_log_likelihoods(own_logits, ids))
        else:
            distances.append(window_distance(base_logits, own_logits, ids))
            losses.append(distances[-1].own_losses)

    def text_at(window: int, position: int) -> str:
        ids = windows[window][max(0, position + 2 - SHOWN_TOKENS) : position + 2]
        return str(tokenizer.decode(ids))

    with np.errstate(over="ignore"):
        own_perplexity = perplexity(losses)
        distance = summarize(distances, text_at) if distances else None
    ratio = distance.perplexity_ratio_high if distance else 1.0
    if not math.isfinite(own_perplexity) or not math.isfinite(ratio):
        raise BrokenModelError(
            f"{label}: the perplexity of the held-out text, or its ratio to the base's, is larger "
            "than any number: the model is broken; change its recipe or its weights"
        )
    return ScoredText(perplexity=own_perplexity, distance=distance)
