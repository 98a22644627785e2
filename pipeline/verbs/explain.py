"""Explain why a variant got its verdict, from the records of select, evaluate and quantize.

Nothing is computed by a model, and nothing is written.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.core.errors import InputError
from pipeline.core.files import read_record
from pipeline.core.formatting import NBSP, bytes_text, percent, significant
from pipeline.core.workspace import BASE, Workspace
from pipeline.gate.comparison import row_pairs
from pipeline.params.params import Params
from pipeline.records.evaluation import DocumentRecord, Scored
from pipeline.records.scored import read_base_in, read_scored
from pipeline.records.selection import Selection, VariantVerdict
from pipeline.records.variant import TensorCoverage, VariantRecord
from pipeline.report.verdicts import task_verdict_rows
from pipeline.tasks.texts import Question, read_questions

NUM_SHOWN = 10
MAX_CHARACTERS = 160


@dataclass(frozen=True)
class Flip:
    """Hold a document whose metric differs between the base and the variant.

    The lead of the right answer is its log-probability minus that of the best other answer.
    `lead_lost` is the base's lead minus the variant's, in nats; None where the model wrote its
    answer.
    """

    base: DocumentRecord
    own: DocumentRecord
    lead_lost: float | None

    @property
    def key(self) -> tuple[str, int]:
        """Return the task and the number of the document."""
        return self.base.task, self.base.doc_id


def run(workspace: Workspace, params: Params, name: str) -> None:
    """Print the explanation.

    Raises InputError for a name without a verdict, and for records of other files of the variant.
    """
    path = workspace.selection_path
    selection = read_record(Selection, path, made_by="select")
    if name not in selection.variants:
        known = ", ".join(selection.variants)
        raise InputError(f"{name}: no verdict in {path}; variants there: {known}")
    verdict = selection.variants[name]
    own = read_scored(workspace, name)
    if own.record.artifact_digest != verdict.artifact_digest:
        raise InputError(
            f"{path}: decides on other files than the present {name}; run `quantline select` again"
        )
    variant = read_record(VariantRecord, workspace.variant_path(name), made_by=f"quantize {name}")
    base = read_base_in(workspace, read_scored(workspace, BASE), own.record.engine, name=name)
    flips = hardest_flips(base, own)
    questions = read_questions(workspace.root, own.record.suite, [flip.key for flip in flips])
    print("\n".join(explanation(name, verdict, flips, questions, variant.coverage)), flush=True)


def hardest_flips(base: Scored, own: Scored) -> tuple[Flip, ...]:
    """Return the documents with another metric than the base's, the largest loss of lead first."""
    flips = []
    for task, score in own.record.tasks.items():
        pairs = row_pairs(base.rows, own.rows, task, name=own.record.name)
        for one, other in zip(*pairs, strict=True):
            values = one.metrics[score.metric], other.metrics[score.metric]
            if isinstance(values[0], float) and values[0] != values[1]:
                before, after = _lead(one), _lead(other)
                lead_lost = None if before is None or after is None else before - after
                flips.append(Flip(one, other, lead_lost))
    return tuple(sorted(flips, key=lambda flip: -abs(flip.lead_lost or 0.0))[:NUM_SHOWN])


def _lead(row: DocumentRecord) -> float | None:
    """Return the lead of the right answer; None where there are no choices."""
    if row.logprobs is None or len(row.logprobs) < 2 or not row.target.isdigit():
        return None
    right = int(row.target)
    if right >= len(row.logprobs):
        return None
    others = [value for number, value in enumerate(row.logprobs) if number != right]
    return row.logprobs[right] - max(others)


def explanation(
    name: str,
    verdict: VariantVerdict,
    flips: Sequence[Flip],
    questions: Mapping[tuple[str, int], Question],
    coverage: Sequence[TensorCoverage],
) -> list[str]:
    """Return the lines to print: the verdict, its numbers, the documents, the tensors."""
    lines = [
        f"{name}: {verdict.verdict}",
        f"{verdict.format}, {significant(verdict.bits_per_weight)} bits per quantized weight: the "
        f"{verdict.gate_class} class; {bytes_text(verdict.weight_bytes)}, "
        f"{percent(verdict.size_ratio)} of the base",
        *(f"  {reason}" for reason in verdict.reasons),
    ]
    if verdict.tasks:
        lines += ["", "Tasks", *task_lines(verdict)]
    if verdict.distance is not None:
        lines += ["", "Distance to the base", *distance_lines(verdict)]
    lines += ["", f"Documents whose answers changed most ({len(flips)} shown)"]
    for flip in flips:
        lines += flip_lines(flip, questions.get(flip.key))
    lines += ["", "Tensors with the largest error", *tensor_lines(coverage)]
    return [line.replace(NBSP, " ") for line in lines]


def task_lines(verdict: VariantVerdict) -> list[str]:
    """Return a table of the tasks."""
    heading = ("task", "base → variant", "drop", "bounds", "margin", "worse / better", "McNemar p")
    rows = [
        (
            *(row.task, row.scores, row.drop.value, row.drop.interval),
            *(row.margin, row.flips, row.mcnemar_p),
        )
        for row in task_verdict_rows(verdict)
    ]
    verdicts = ["verdict", *(task.verdict for task in verdict.tasks.values())]
    aligned_rows = aligned([heading, *rows])
    return [f"{line}  {word}" for line, word in zip(aligned_rows, verdicts, strict=True)]


def distance_lines(verdict: VariantVerdict) -> list[str]:
    """Return a table of KL and the perplexity ratio against their bounds."""
    heading = ("", "value", "low", "high", "bound", "verdict")
    rows = [
        (
            name,
            *(f"{value:.5g}" for value in (bound.value, bound.low, bound.high, bound.limit)),
            bound.verdict.value,
        )
        for name, bound in verdict.bounds.items()
    ]
    return aligned([heading, *rows])


def flip_lines(flip: Flip, question: Question | None) -> list[str]:
    """Return one document: its question if that is known, the right answer and both models'."""
    task, number = flip.key
    change = (
        "" if flip.lead_lost is None else f", lead of the right answer {-flip.lead_lost:+.2f} nats"
    )
    lines = [f"  {task}, document {number}{change}"]
    if question is not None:
        lines.append(f"    asked:   {shortened(question.prompt)}")
    choices = question.choices if question is not None else ()
    target = _named(int(flip.base.target), choices) if flip.base.target.isdigit() else None
    return [
        *lines,
        f"    right:   {target or shortened(flip.base.target)}",
        f"    base:    {answer(flip.base, choices)}",
        f"    variant: {answer(flip.own, choices)}",
    ]


def answer(row: DocumentRecord, choices: Sequence[str]) -> str:
    """Return the answer that the model chose, with its log-probability, or the text it wrote."""
    if row.logprobs is None:
        return shortened(row.generated or "nothing")
    chosen = max(range(len(row.logprobs)), key=lambda number: row.logprobs[number])  # type: ignore[index]
    return f"{_named(chosen, choices)} ({row.logprobs[chosen]:.3g})"


def _named(number: int, choices: Sequence[str]) -> str:
    return shortened(choices[number]) if number < len(choices) else f"answer {number}"


def tensor_lines(coverage: Sequence[TensorCoverage]) -> list[str]:
    """Return a table of the quantized tensors with the largest relative errors."""
    known = [tensor for tensor in coverage if tensor.relative_error is not None]
    if not known:
        return ["  no tensor has a known error"]
    worst = sorted(known, key=lambda tensor: -(tensor.relative_error or 0.0))[:NUM_SHOWN]
    rows = [
        (
            tensor.name,
            tensor.scheme,
            f"{tensor.relative_error:.3e}",
            "–" if tensor.error_ratio is None else significant(tensor.error_ratio),
        )
        for tensor in worst
    ]
    return aligned([("tensor", "stored as", "relative error", "of plain rounding"), *rows])


def shortened(text: str) -> str:
    """Return a text as one line without control characters; of a long one the end alone.

    The question itself stands at the end of a prompt.
    """
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= MAX_CHARACTERS else "…" + line[-MAX_CHARACTERS:]


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return rows in columns of equal width: the first aligned left, the others right."""
    table = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in table
    ]
