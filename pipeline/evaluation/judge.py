"""Judging one model after another on the same held-out text and the same tasks.

Everything that does not depend on a model is made once: token ids, requests, the digests of both.
What a model scored before is remembered. Which models there are is the stage's business.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

from pipeline.core.errors import InputError
from pipeline.core.files import file_sha256
from pipeline.core.progress import track
from pipeline.core.texts import read_texts, token_ids_sha256, token_windows
from pipeline.engines.distance import (
    Floats,
    WindowDistance,
    negative_log_likelihoods,
    perplexity,
    summarize,
    window_distance,
)
from pipeline.engines.scorer import Logits, Scorer, engine_of, window_logits
from pipeline.evaluation.lm_eval_model import ScoredModel
from pipeline.evaluation.score_cache import Memory, ScoredText
from pipeline.evaluation.task_runs import Stopping, SuiteResult, TaskQuestions, run_tasks
from pipeline.params.params import EvaluateParams
from pipeline.records.evaluation import Distance, Engine

MIN_WINDOWS = 2

KEPT_BYTES = 1 << 28
"""Logits of the reference that stay in memory from one model to the next."""

SHOWN_TOKENS = 24
"""Of the text where KL is largest."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out text in windows of the base's token ids."""

    texts: list[str]
    windows: list[list[int]]
    text_sha256: str
    token_ids_sha256: str

    @property
    def num_tokens(self) -> int:
        return sum(len(window) - 1 for window in self.windows)


def read_held_out(root: Path, evaluate: EvaluateParams, tokenizer: Any) -> HeldOut:
    """Raises InputError for an unusable text, or too little of it."""
    if evaluate.num_windows < MIN_WINDOWS:
        raise InputError(
            f"evaluate.num_windows = {evaluate.num_windows}: expected at least {MIN_WINDOWS}, for "
            "a confidence interval"
        )
    path = root / evaluate.text
    texts = read_texts(path)
    windows = token_windows(
        texts,
        tokenizer.encode,
        window_tokens=evaluate.window_tokens,
        num_windows=evaluate.num_windows,
        source=f"evaluate.text = {evaluate.text}",
    )
    return HeldOut(texts, windows, file_sha256(path), token_ids_sha256(windows))


@dataclass(frozen=True)
class Subject:
    """A model to be judged: the digest of its files, and the engine for them."""

    digest: str
    scorer: Scorer

    @property
    def identity(self) -> tuple[str, Engine]:
        """What its logits depend on."""
        return self.digest, engine_of(self.scorer)


@dataclass(frozen=True)
class Judgement:
    suite: SuiteResult
    perplexity: float
    distance: Distance | None


@dataclass(frozen=True)
class Judge:
    """`base_digest` stands for the tokenizer, of `vocab_size` tokens in the model; `cache_dir` is
    where results are kept."""

    base_digest: str
    tokenizer: Any
    vocab_size: int
    held_out: HeldOut
    questions: Sequence[TaskQuestions]
    evaluate: EvaluateParams
    cache_dir: Path
    kept_logits: dict[tuple[str, Engine], list[Logits]] = field(default_factory=dict)

    def judge(
        self, subject: Subject, reference: Subject | None, stopping: Stopping | None = None
    ) -> Judgement:
        """Scores, perplexity, and the distance to `reference` where there is one.

        `stopping` may end the tasks before their last document. The reference is closed before the
        subject is loaded, where its logits can be kept, and else before the tasks begin. Raises
        BrokenModelError for logits that are not finite, InputError for windows that are longer than
        the model's context.
        """
        facts = (self.base_digest, str(self.evaluate.batch_size))
        memory = Memory(self.cache_dir, subject.scorer, subject.digest, facts)
        text = memory.text(
            self.held_out.token_ids_sha256,
            reference.identity if reference else None,
            lambda: self._measure(subject, reference),
        )
        if reference is not None:
            reference.scorer.close()
        suite = run_tasks(
            self.questions,
            ScoredModel(subject.scorer, self.tokenizer, batch_size=self.evaluate.batch_size),
            remembered=memory.rows,
            stopping=stopping,
        )
        return Judgement(suite, text.perplexity, text.distance)

    def _measure(self, subject: Subject, reference: Subject | None) -> ScoredText:
        base: Scorer | Sequence[Logits] | None = None
        if reference is not None:
            base = self._kept_logits(reference) or reference.scorer
            # Another engine wants to find its memory free when it starts.
            reference.scorer.close()
        self._require_context(subject)
        return measure(
            subject.scorer,
            base,
            self.held_out.windows,
            self.tokenizer,
            batch_size=self.evaluate.batch_size,
        )

    def _kept_logits(self, reference: Subject) -> list[Logits] | None:
        """The reference's logits, once for all models of this run; None where they take much room.

        In that case the reference is not loaded.
        """
        num_tokens = sum(map(len, self.held_out.windows))
        if 4 * num_tokens * self.vocab_size > KEPT_BYTES:
            return None
        if reference.identity not in self.kept_logits:
            self._require_context(reference)
            self.kept_logits[reference.identity] = list(
                window_logits(
                    reference.scorer, self.held_out.windows, batch_size=self.evaluate.batch_size
                )
            )
        return self.kept_logits[reference.identity]

    def _require_context(self, subject: Subject) -> None:
        if self.evaluate.window_tokens > subject.scorer.max_length:
            raise InputError(
                f"evaluate.window_tokens = {self.evaluate.window_tokens}: expected at most "
                f"{subject.scorer.max_length}, the model's context"
            )


def measure(
    scorer: Scorer,
    reference: Scorer | Sequence[Logits] | None,
    windows: Sequence[list[int]],
    tokenizer: Any,
    *,
    batch_size: int,
) -> ScoredText:
    """Perplexity on the windows, and the distance to `reference`, a model or its logits.

    Both models read each window in turn, and of its logits only a few numbers for each token stay.
    """
    losses: list[Floats] = []
    distances: list[WindowDistance] = []
    own_windows = window_logits(scorer, windows, batch_size=batch_size)
    base_windows: Iterable[Logits | None] = repeat(None)
    if isinstance(reference, Sequence):
        base_windows = reference
    elif reference is not None:
        base_windows = window_logits(reference, windows, batch_size=batch_size)
    pairs = zip(windows, own_windows, base_windows, strict=False)
    for window, own, base in track(pairs, f"{scorer.label}: windows", total=len(windows)):
        if base is None:
            losses.append(negative_log_likelihoods(own, window))
        else:
            distances.append(window_distance(base, own, window))
            losses.append(distances[-1].own_losses)

    def text_at(window: int, position: int) -> str:
        ids = windows[window][max(0, position + 2 - SHOWN_TOKENS) : position + 2]
        return str(tokenizer.decode(ids))

    return ScoredText(
        perplexity=perplexity(losses),
        distance=summarize(distances, text_at) if distances else None,
    )
