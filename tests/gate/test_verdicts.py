"""The gate as a rule: three verdicts, what decides them, and no lie about the numbers."""

import math
from typing import Any

import pytest

from pipeline.core.errors import InputError
from pipeline.gate.comparison import rows_of, task_recovery
from pipeline.gate.drops import PROGRESS, Progress
from pipeline.gate.reasons import distinct
from pipeline.gate.sequential import look_sizes
from pipeline.gate.verdicts import ScoredVariant, decide, next_step
from pipeline.params.gate import GateClass, GateParams, SequentialParams, Spending
from pipeline.records.evaluation import (
    Distance,
    DocumentRecord,
    EvaluationRecord,
    Scored,
    TaskScore,
)
from pipeline.records.selection import Selection, VariantVerdict, Verdict

FOUR_BITS = GateClass(
    min_bits=0.0, margin_factor=1.0, max_mean_drop=0.03, max_kl=0.05, max_perplexity_ratio=1.05
)
EIGHT_BITS = GateClass(
    min_bits=7.0, margin_factor=0.5, max_mean_drop=0.01, max_kl=0.01, max_perplexity_ratio=1.01
)
GATE = GateParams(
    error_rate=0.05,
    power=0.8,
    margin=0.05,
    classes={"8-bit": EIGHT_BITS, "4-bit": FOUR_BITS},
    sequential=None,
    profiles={},
)
BASE_SHA, OWN_SHA, OTHER_SHA = "aa" * 32, "bb" * 32, "cc" * 32
NUM_DOCUMENTS = 300
MARGIN = 0.05

Flipped = tuple[int, int]
"""How many documents turned from right to wrong, and from wrong to right."""


def rows(task: str, right: set[int]) -> list[DocumentRecord]:
    return [
        DocumentRecord(
            task=task,
            doc_id=number,
            doc_hash=f"{task} {number}",
            cluster=f"{task} {number}",
            prompt_hash=f"{number}",
            target="0",
            logprobs=(-1.0, -2.0),
            generated=None,
            metrics={"acc": float(number in right)},
        )
        for number in range(NUM_DOCUMENTS)
    ]


def scored(answers: dict[str, set[int]], **changes: Any) -> Scored:
    tasks = {
        task: TaskScore(
            metric="acc",
            value=len(right) / NUM_DOCUMENTS,
            stderr=None,
            higher_is_better=True,
            num_documents=NUM_DOCUMENTS,
            version="1.0",
        )
        for task, right in answers.items()
    }
    values = {
        "name": "base",
        "artifact_digest": BASE_SHA,
        "base_digest": BASE_SHA,
        "backend": "transformers",
        "backend_version": "1",
        "device": "cpu",
        "suite": "demo",
        "tasks": tasks,
        "perplexity": 4.0,
        "distance": None,
        "text_sha256": OTHER_SHA,
        "token_ids_sha256": OTHER_SHA,
        "num_tokens": 1000,
        "documents_sha256": OTHER_SHA,
        "broken": None,
        "controls": {},
        "template_date": None,
    }
    record = EvaluationRecord.model_validate(values | changes)
    return Scored(record, [row for task, right in answers.items() for row in rows(task, right)])


def distance(kl: float = 0.01, ratio: float = 1.0, width: float = 0.0) -> Distance:
    return Distance(
        kl=kl, kl_low=kl - width, kl_high=kl + width, kl_median=kl, kl_p99=kl, kl_p999=kl,
        kl_max=kl, kl_max_text="x", top1=0.9, perplexity_ratio=ratio,
        perplexity_ratio_low=ratio - width, perplexity_ratio_high=ratio + width,
        probability_change=0.0, probability_change_rms=0.0,
    )  # fmt: skip


def base_of(num_tasks: int) -> Scored:
    """240 of 300 are right in every task."""
    return scored({f"task_{number}": set(range(240)) for number in range(num_tasks)})


def own(flips: tuple[Flipped, ...], **changes: Any) -> Scored:
    answers = {
        f"task_{number}": set(range(lost, 240 + won)) for number, (lost, won) in enumerate(flips)
    }
    named = {"name": "variant", "artifact_digest": OWN_SHA, "distance": distance()}
    return scored(answers, **(named | changes))


def judge(
    *flips: Flipped,
    measured: Distance | None = None,
    bits: float = 4.25,
    gate: GateParams = GATE,
    margin: float = MARGIN,
) -> VariantVerdict:
    base = base_of(len(flips))
    variant = own(flips, distance=measured or distance())
    return select(
        {"variant": ScoredVariant(base, variant, "awq", bits, 300)}, gate, margin
    ).variants["variant"]


def select(
    variants: dict[str, ScoredVariant], gate: GateParams = GATE, margin: float = MARGIN
) -> Selection:
    base = next(iter(variants.values())).base
    margins = dict.fromkeys(base.record.tasks, margin)
    return decide(base.record, 1000, variants, margins, gate)


def test_an_identical_variant_is_approved_with_its_numbers() -> None:
    verdict = judge((0, 0), (0, 0), measured=distance(kl=0.0))
    assert verdict.verdict is Verdict.APPROVED
    assert verdict.recovery == 1.0
    assert verdict.size_ratio == 0.3
    assert verdict.tasks["task_0"].drop == 0.0
    assert verdict.tasks["task_0"].mcnemar_p == 1.0
    assert verdict.mean_drop is not None
    assert verdict.reasons == (
        "task_0: drop 0, at most 0.00994 with 95 % confidence, within 0.05",
        "mean over tasks: drop 0, at most 0.00545 with 95 % confidence, within 0.03",
        "KL in nats per token 0, at most 0, within 0.05",
        "perplexity ratio to the base 1, at most 1, within 1.05",
    )


def test_a_far_worse_variant_is_rejected_for_the_task_it_lost() -> None:
    verdict = judge((2, 1), (60, 5))
    assert verdict.verdict is Verdict.REJECTED
    assert [it.verdict for it in verdict.tasks.values()] == [Verdict.APPROVED, Verdict.REJECTED]
    lost = verdict.tasks["task_1"]
    assert (lost.right_to_wrong, lost.wrong_to_right) == (60, 5)
    assert lost.base == 0.8
    assert lost.variant == pytest.approx(0.8 - 55 / 300)
    assert lost.mcnemar_p is not None
    assert lost.mcnemar_p < 1e-11
    assert lost.low > MARGIN
    assert verdict.reasons[0].startswith("task_1: drop 0.183, at least 0.14")
    assert verdict.reasons[0].endswith("with 95 % confidence, above 0.05")


def test_a_margin_too_tight_names_documents_and_these_decide() -> None:
    verdict = judge((4, 3), (6, 2), margin=0.02)
    assert verdict.verdict is Verdict.INCONCLUSIVE
    open_task = verdict.tasks["task_1"]
    assert open_task.verdict is Verdict.INCONCLUSIVE
    assert open_task.further_documents is not None
    assert open_task.low < 0.02 < open_task.high
    (reason,) = (it for it in verdict.reasons if it.startswith("task_1"))
    assert reason.endswith(
        f"margin 0.02: not decided, run {open_task.further_documents:,} more documents"
    )


def test_8_bits_are_held_to_more() -> None:
    measured = distance(kl=0.005)
    assert judge((8, 2), measured=measured, bits=4.5).verdict is Verdict.APPROVED
    verdict = judge((8, 2), measured=measured, bits=8.5)
    assert verdict.gate_class == "8-bit"
    assert verdict.tasks["task_0"].margin == 0.025
    assert verdict.verdict is Verdict.INCONCLUSIVE
    assert judge((0, 0), measured=distance(kl=0.02), bits=8.5).verdict is Verdict.REJECTED


@pytest.mark.parametrize(
    ("measured", "verdict", "reason"),
    [
        (
            distance(kl=0.08, width=0.01),
            Verdict.REJECTED,
            "KL in nats per token 0.08, at least 0.07, above 0.05",
        ),
        (
            distance(ratio=1.2, width=0.01),
            Verdict.REJECTED,
            "perplexity ratio to the base 1.2, at least 1.19, above 1.05",
        ),
        (
            distance(kl=0.045, width=0.01),
            Verdict.INCONCLUSIVE,
            "KL in nats per token 0.045, between 0.035 and 0.055, bound 0.05: not decided, "
            "run 7,173 more tokens of held-out text",
        ),
        (
            distance(kl=0.05, width=0.01),
            Verdict.INCONCLUSIVE,
            "KL in nats per token 0.05, between 0.04 and 0.06, bound 0.05: no number of tokens "
            "would decide what equals its bound",
        ),
    ],
)
def test_distances_are_judged_by_the_ends_of_their_intervals(
    measured: Distance, verdict: Verdict, reason: str
) -> None:
    found = judge((0, 0), measured=measured)
    assert found.verdict is verdict
    assert found.reasons == (reason,)


def test_bounds_are_exact() -> None:
    """On the bound passes, the next float beyond it does not, however it would be written."""
    assert judge((0, 0), measured=distance(kl=0.05)).verdict is Verdict.APPROVED
    beyond = judge((0, 0), measured=distance(kl=math.nextafter(0.05, 1.0)))
    assert beyond.verdict is Verdict.REJECTED
    assert "at least 0.05000000000000001, above 0.05" in beyond.reasons[0]


def test_a_number_is_never_written_like_the_threshold_it_misses() -> None:
    assert distinct(0.9699999, 0.97) == "0.9699999"
    assert distinct(0.05, 0.05) == "0.05"
    assert distinct(0.123456, 0.05) == "0.123"


def test_many_flips_at_the_same_score_are_no_approval() -> None:
    """Accuracy alone hides them: 45 documents each way leave the score as it was."""
    verdict = judge((45, 45))
    assert verdict.tasks["task_0"].drop == 0.0
    assert verdict.verdict is Verdict.INCONCLUSIVE


def test_a_broken_variant_is_rejected_and_nothing_is_averaged() -> None:
    broken = own((), tasks={}, perplexity=None, distance=None, broken="logits of layer 3 are NaN")
    selection = select({"variant": ScoredVariant(base_of(1), broken, "awq", 4.25, 300)})
    verdict = selection.variants["variant"]
    assert verdict.verdict is Verdict.REJECTED
    assert verdict.reasons == ("broken: logits of layer 3 are NaN",)
    assert (verdict.recovery, verdict.distance, verdict.tasks) == (None, None, {})
    assert not verdict.pareto


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"base_digest": OTHER_SHA}, "base"),
        ({"distance": None}, "base"),
        ({"suite": "quick"}, "suite"),
        ({"tasks": base_of(2).record.tasks}, "set of tasks"),
        ({"token_ids_sha256": BASE_SHA}, "text"),
    ],
)
def test_what_was_not_measured_alike_is_not_compared(change: dict[str, Any], what: str) -> None:
    scored = ScoredVariant(base_of(1), own(((0, 0),), **change), "awq", 4.25, 300)
    with pytest.raises(InputError, match=f"^variant: evaluated with another {what} than the base"):
        select({"variant": scored})


def test_other_documents_or_prompts_are_not_compared() -> None:
    variant = own(((0, 0),))
    changed = [row.model_copy(update={"prompt_hash": "other"}) for row in variant.rows]
    scored = ScoredVariant(base_of(1), Scored(variant.record, changed), "awq", 4.25, 300)
    with pytest.raises(InputError, match="another set of documents of task_0 than the base"):
        select({"variant": scored})


@pytest.mark.parametrize("values", [(0.0, 2.0), 5.0, None])
def test_a_score_that_is_no_mean_of_its_documents_is_not_compared(values: object) -> None:
    metrics = {} if values is None else {"acc": values}
    base = base_of(1)
    changed = [row.model_copy(update={"metrics": metrics}) for row in base.rows]
    scored = ScoredVariant(Scored(base.record, changed), own(((0, 0),)), "awq", 4.25, 300)
    with pytest.raises(InputError, match=r"^task_0: acc is no mean over documents"):
        select({"variant": scored})


def sequential(num_scored: int, lost: int) -> ScoredVariant:
    """A variant that was scored on the first documents, in the order of a sequential evaluation."""
    variant = own(((lost, 0),))
    kept = rows_of(variant.rows, "task_0")[:num_scored]
    score = variant.record.tasks["task_0"].model_copy(update={"num_documents": num_scored})
    record = variant.record.model_copy(update={"tasks": {"task_0": score}})
    return ScoredVariant(base_of(1), Scored(record, kept), "awq", 4.25, 300)


def test_an_evaluation_that_stopped_early_is_judged_at_its_look() -> None:
    gate = GATE.model_copy(
        update={"sequential": SequentialParams(looks=3, spending=Spending.POCOCK)}
    )
    verdict = select({"variant": sequential(100, 0)}, gate).variants["variant"]
    assert verdict.documents_share == 1 / 3
    assert verdict.tasks["task_0"].num_documents == 100
    assert verdict.tasks["task_0"].level < 0.05
    assert verdict.verdict is Verdict.APPROVED
    with pytest.raises(InputError, match="variant: task_0: 150 of 300 documents were scored; exp"):
        select({"variant": sequential(150, 0)}, gate)
    with pytest.raises(InputError, match="100 of 300 documents were scored; expected 300, as gate"):
        select({"variant": sequential(100, 0)})


@pytest.mark.parametrize(
    ("flips", "progress", "num_scored"),
    [
        (((0, 0), (0, 0)), Progress.CLEAR_PASS, 200),
        (((90, 0), (0, 0)), Progress.CLEAR_FAIL, 200),
        (((13, 5), (0, 0)), Progress.CONTINUE, 500),
    ],
)
def test_a_sequential_evaluation_ends_where_select_says_the_same(
    flips: tuple[Flipped, ...], progress: Progress, num_scored: int
) -> None:
    """The loop that evaluate runs: score what is asked for until nothing is open."""
    params = SequentialParams(looks=3, spending=Spending.POCOCK)
    gate = GATE.model_copy(update={"sequential": params})
    base, answers = base_of(2), own(flips)
    margins = dict.fromkeys(base.record.tasks, MARGIN)
    scored_rows: dict[str, list[DocumentRecord]] = {task: [] for task in margins}
    open_tasks: tuple[str, ...] = tuple(margins)
    while open_tasks:
        for task in open_tasks:
            rows, num_scored_before = rows_of(base.rows, task), len(scored_rows[task])
            sizes = [it for it in look_sizes(len(rows), params.looks) if it > num_scored_before]
            numbers = [row.doc_id for row in rows[num_scored_before : min(sizes, default=0)]]
            known = {row.doc_id: row for row in answers.rows if row.task == task}
            scored_rows[task] += [known[number] for number in numbers]
        rows_so_far = [row for rows in scored_rows.values() for row in rows]
        step = next_step(base, rows_so_far, margins, FOUR_BITS, gate, name="variant")
        open_tasks = step.open_tasks
    assert step.progress is progress
    assert len(rows_so_far) == num_scored
    tasks = {
        task: score.model_copy(update={"num_documents": len(scored_rows[task])})
        for task, score in answers.record.tasks.items()
    }
    record = answers.record.model_copy(update={"tasks": tasks})
    scored = ScoredVariant(base, Scored(record, rows_so_far), "awq", 4.25, 300)
    verdict = select({"variant": scored}, gate).variants["variant"]
    assert PROGRESS[verdict.verdict] is progress


@pytest.mark.parametrize(
    ("base", "variant", "higher_is_better", "expected"),
    [
        (0.8, 0.4, True, 0.5),
        (0.8, 0.88, True, 1.1),
        (0.0, 0.0, True, 1.0),
        (0.0, 0.3, True, 1.0),
        (4.0, 5.0, False, 0.8),
        (4.0, 2.0, False, 2.0),
        (0.0, 0.5, False, 0.0),
        (0.0, 0.0, False, 1.0),
    ],
)
def test_recovery_in_both_directions_and_at_zero(
    base: float, variant: float, higher_is_better: bool, expected: float
) -> None:
    def score(value: float) -> TaskScore:
        return TaskScore(
            metric="m",
            value=value,
            stderr=None,
            higher_is_better=higher_is_better,
            num_documents=10,
            version="1",
        )

    assert task_recovery(score(base), score(variant)) == pytest.approx(expected)


def test_a_better_variant_never_gets_a_worse_verdict() -> None:
    order = [Verdict.REJECTED, Verdict.INCONCLUSIVE, Verdict.APPROVED]
    ranks = [order.index(judge((lost, 3)).verdict) for lost in range(0, 46, 3)]
    assert ranks == sorted(ranks, reverse=True)
    assert set(ranks) == {0, 1, 2}
