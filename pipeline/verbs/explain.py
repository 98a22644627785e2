"""explain: why a variant got its verdict, from what select, evaluate and quantize left behind.

It runs no model and writes nothing.
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

SHOWN = 10


LONGEST_TEXT = 160


@dataclass(frozen=True)
class Flip:
    """A document whose metric changed. `change` is what the right answer lost of its lead over the
    best other one, in nats; None where the model wrote its answer."""

    base: DocumentRecord
    own: DocumentRecord
    change: float | None

    @property
    def key(self) -> tuple[str, int]:
        return self.base.task, self.base.doc_id


def run(workspace: Workspace, params: Params, name: str) -> None:
    """Print the explanation. Raises InputError for a name without a verdict."""
    path = workspace.selection_path
    selection = read_record(Selection, path, made_by="select")
    if name not in selection.variants:
        known = ", ".join(selection.variants)
        raise InputError(f"{name}: no verdict in {path}; variants there: {known}")
    verdict = selection.variants[name]
    own = read_scored(workspace, name)
    if own.record.artifact_digest != verdict.artifact_digest:
        raise InputError(f"{path}: of another {name}; run `quantline select` again")
    variant = read_record(VariantRecord, workspace.variant_path(name), made_by=f"quantize {name}")
    base = read_base_in(workspace, read_scored(workspace, BASE), own.record.engine, name=name)
    flips = hardest_flips(base, own)
    questions = read_questions(workspace.root, own.record.suite, [it.key for it in flips])
    print("\n".join(explanation(name, verdict, flips, questions, variant.coverage)), flush=True)


def hardest_flips(base: Scored, own: Scored) -> tuple[Flip, ...]:
    """The documents with another metric than before, the largest change of the lead first."""
    flips = []
    for task, score in own.record.tasks.items():
        pairs = row_pairs(base.rows, own.rows, task, name=own.record.name)
        for one, other in zip(*pairs, strict=True):
            values = one.metrics[score.metric], other.metrics[score.metric]
            if isinstance(values[0], float) and values[0] != values[1]:
                flips.append(Flip(one, other, _change(one, other)))
    return tuple(sorted(flips, key=lambda it: -abs(it.change or 0.0))[:SHOWN])


def _change(base: DocumentRecord, own: DocumentRecord) -> float | None:
    before, after = _lead(base), _lead(own)
    return None if before is None or after is None else before - after


def _lead(row: DocumentRecord) -> float | None:
    """Log-probability of the right answer minus that of the best other one."""
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
    """Everything in order: the verdict, its numbers, the documents, the tensors."""
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
    lines += ["", f"Documents that flipped hardest ({len(flips)} shown)"]
    for flip in flips:
        lines += flip_lines(flip, questions.get(flip.key))
    lines += ["", "Tensors with the largest error", *tensor_lines(coverage)]
    return [line.replace(NBSP, " ") for line in lines]


def task_lines(verdict: VariantVerdict) -> list[str]:
    heading = ("task", "base → variant", "drop", "bounds", "margin", "worse / better", "McNemar p")
    rows = [
        (it.task, it.scores, it.drop.value, it.drop.interval, it.margin, it.flips, it.mcnemar_p)
        for it in task_verdict_rows(verdict)
    ]
    verdicts = ["verdict", *(it.verdict for it in verdict.tasks.values())]
    aligned_rows = aligned([heading, *rows])
    return [f"{line}  {word}" for line, word in zip(aligned_rows, verdicts, strict=True)]


def distance_lines(verdict: VariantVerdict) -> list[str]:
    heading = ("", "value", "low", "high", "bound", "verdict")
    rows = [
        (
            name,
            *(f"{value:.5g}" for value in (it.value, it.low, it.high, it.limit)),
            it.verdict.value,
        )
        for name, it in verdict.bounds.items()
    ]
    return aligned([heading, *rows])


def flip_lines(flip: Flip, question: Question | None) -> list[str]:
    task, number = flip.key
    change = "" if flip.change is None else f", lead of the right answer {-flip.change:+.2f} nats"
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
    """What the model chose, with its log-probability, or wrote."""
    if row.logprobs is None:
        return shortened(row.generated or "nothing")
    chosen = max(range(len(row.logprobs)), key=lambda number: row.logprobs[number])  # type: ignore[index]
    return f"{_named(chosen, choices)} ({row.logprobs[chosen]:.3g})"


def _named(number: int, choices: Sequence[str]) -> str:
    return shortened(choices[number]) if number < len(choices) else f"answer {number}"


def tensor_lines(coverage: Sequence[TensorCoverage]) -> list[str]:
    """The quantized tensors that lost most of their output, by the share that was lost."""
    known = [it for it in coverage if it.relative_error is not None]
    if not known:
        return ["  no error is known of any tensor"]
    worst = sorted(known, key=lambda it: -(it.relative_error or 0.0))[:SHOWN]
    rows = [
        (
            it.name,
            it.scheme,
            f"{it.relative_error:.3e}",
            "–" if it.error_ratio is None else significant(it.error_ratio),
        )
        for it in worst
    ]
    return aligned([("tensor", "stored as", "relative error", "of rounding to nearest"), *rows])


def shortened(text: str) -> str:
    """One line without control characters, from its end when it is long: questions end there."""
    line = " ".join("".join(it if it.isprintable() else " " for it in text).split())
    return line if len(line) <= LONGEST_TEXT else "…" + line[-LONGEST_TEXT:]


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns of text: the first to the left, numbers to the right."""
    table = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in table
    ]
