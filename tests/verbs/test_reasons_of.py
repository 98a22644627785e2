"""The explanation: which documents it shows, with which answers, and that it stays plain text."""

from pipeline.records.evaluation import Scored
from pipeline.records.variant import TensorCoverage
from pipeline.tasks.texts import Question
from pipeline.verbs.explain import (
    MAX_CHARACTERS,
    aligned,
    flip_lines,
    hardest_flips,
    shortened,
    tensor_lines,
)
from tests.gate.test_verdicts import base_of, own


def with_rows(scored: Scored, **changes: dict[int, object]) -> Scored:
    """The same with fields of some rows replaced: field=number to value."""
    rows = list(scored.rows)
    for field, values in changes.items():
        for number, value in values.items():
            rows[number] = rows[number].model_copy(update={field: value})
    return Scored(scored.record, rows)


def tensor(name: str, error: float | None) -> TensorCoverage:
    return TensorCoverage(
        name=name,
        shape=(2, 2),
        scheme="Q4_K",
        bits_per_weight=4.5,
        relative_error=error,
        error_ratio=None,
        reason=None,
    )


def test_the_hardest_flip_comes_first_and_what_did_not_flip_is_left_out() -> None:
    variant = with_rows(
        own(((3, 0),)),
        logprobs={0: (-3.0, -1.0), 1: (-9.0, -1.0), 2: (-1.1, -1.0), 50: (-99.0, -1.0)},
    )
    flips = hardest_flips(base_of(1), variant)
    assert [it.base.doc_id for it in flips] == [1, 0, 2]
    assert flips[0].lead_lost == (-1.0 - -2.0) - (-9.0 - -1.0)


def test_at_most_ten_are_shown() -> None:
    assert len(hardest_flips(base_of(1), own(((25, 3),)))) == 10


def test_written_answers_are_shown_as_they_are() -> None:
    changes = {"logprobs": {0: None}, "generated": {0: "a long answer"}}
    base, variant = with_rows(base_of(1), **changes), with_rows(own(((2, 0),)), **changes)
    flips = hardest_flips(base, variant)
    assert [flip.lead_lost is None for flip in flips].count(True) == 1
    assert len(flips) == 2
    lines = flip_lines(next(flip for flip in flips if flip.lead_lost is None), None)
    assert lines[0] == "  task_0, document 0"
    assert "    variant: a long answer" in lines


def test_both_answers_are_named_when_the_question_is_known() -> None:
    (flip,) = hardest_flips(base_of(1), with_rows(own(((1, 0),)), logprobs={0: (-3.0, -1.5)}))
    lines = flip_lines(flip, Question("Who sells bread?", ("the baker", "the smith")))
    assert lines == [
        "  task_0, document 0, lead of the right answer -2.50 nats",
        "    asked:   Who sells bread?",
        "    right:   the baker",
        "    base:    the baker (-1)",
        "    variant: the smith (-1.5)",
    ]
    assert "    variant: answer 1 (-1.5)" in flip_lines(flip, None)


def test_texts_from_outside_stay_on_one_line_and_move_no_cursor() -> None:
    assert shortened("a\n\x1b[2Jb\tc\u202e") == "a [2Jb c"
    assert len(shortened("x" * 1000)) == MAX_CHARACTERS + 1


def test_the_worst_tensors_come_first_and_unknown_errors_last() -> None:
    lines = tensor_lines([tensor("good", 0.01), tensor("kept", None), tensor("bad", 0.2)])
    assert [line.split()[0] for line in lines[1:]] == ["bad", "good"]
    assert tensor_lines([tensor("kept", None)]) == ["  no tensor has a known error"]


def test_columns_are_aligned() -> None:
    assert aligned([("name", "n"), ("a", "100")]) == ["  name    n", "  a     100"]
