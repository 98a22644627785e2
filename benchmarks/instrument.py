"""Show how much every kind of quantization damages the demo model, so how sensitive it is.

`python -m benchmarks.instrument` needs the artifacts of `dvc repro` and reads the evaluations of
the base and the variants. Plain rounding to nearest, which no release has, is evaluated here on the
same tokens and questions: asymmetric, group size 128, without statistics.
"""

from contextlib import closing
from pathlib import Path

from benchmarks.result import Row, publish
from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.documents import read_texts
from pipeline.core.texts import token_windows
from pipeline.core.workspace import BASE, Workspace
from pipeline.engines.in_transformers import TransformersScorer
from pipeline.engines.scorer import window_logits
from pipeline.evaluation.evaluator import score_windows
from pipeline.evaluation.lm_eval_model import LmEvalModel
from pipeline.evaluation.task_runs import TaskQuestions, run_tasks, task_scores
from pipeline.numerics.grid import range_grid
from pipeline.params.linear_recipe import GroupScheme
from pipeline.params.params import Params
from pipeline.params.reading import read_params
from pipeline.params.suites import read_suite
from pipeline.records.evaluation import Distance, EvaluationRecord, TaskScore
from pipeline.tasks.loading import loaded_tasks

GROUP_SIZE = 128
ROUNDED_BITS = (4, 3)


def main() -> None:
    workspace = Workspace(Path.cwd())
    params = read_params(workspace.params_path)
    rows: list[Row] = []
    for name in (BASE, *params.variants):
        path = workspace.evaluation_path(name)
        record = EvaluationRecord.from_bytes(path.read_bytes(), source=str(path))
        rows += _rows(name, record.tasks, record.perplexity, record.distance)
    for num_bits in ROUNDED_BITS:
        rows += _rounded_rows(workspace, params, num_bits)
    publish("instrument", rows)


def _rounded_rows(workspace: Workspace, params: Params, num_bits: int) -> list[Row]:
    """Evaluate plain rounding to nearest of every linear that calibration measured."""
    name = f"nearest-w{num_bits}-g{GROUP_SIZE}"
    model = unpacked_model(workspace.base_dir)
    for linear in Statistics(workspace).linears:
        weight = model.get_submodule(linear).weight.data
        grid = range_grid(
            weight, GroupScheme(num_bits=num_bits, group_size=GROUP_SIZE, symmetric=False)
        )
        weight.copy_(grid.values(grid.round(weight)))
    tokenizer = tokenizer_of(workspace.base_dir)
    evaluate = params.evaluate
    windows = token_windows(
        read_texts(workspace.root / evaluate.text),
        tokenizer.encode,
        window_tokens=evaluate.window_tokens,
        num_windows=evaluate.num_windows,
        source=evaluate.text,
    )
    base = TransformersScorer(unpacked_model(workspace.base_dir), label=BASE)
    with (
        loaded_tasks(workspace.root, read_suite(workspace.root, evaluate.suite)) as tasks,
        closing(base),
        closing(TransformersScorer(model, label=name)) as scorer,
    ):
        own, reference = (
            window_logits(engine, windows, batch_size=evaluate.batch_size)
            for engine in (scorer, base)
        )
        text = score_windows(windows, own, reference, tokenizer, label=scorer.label)
        scored = LmEvalModel(scorer, tokenizer, batch_size=evaluate.batch_size)
        questions = [
            TaskQuestions(task, tokenizer, max_documents=evaluate.max_documents) for task in tasks
        ]
        scores = task_scores(questions, run_tasks(questions, scored))
    return _rows(name, scores, text.perplexity, text.distance)


def _rows(
    name: str, tasks: dict[str, TaskScore], perplexity: float | None, distance: Distance | None
) -> list[Row]:
    accuracy = sum(task.value for task in tasks.values()) / len(tasks)
    rows = [
        Row(f"accuracy_{name}", accuracy, None, None, "mean over tasks"),
    ]
    if perplexity is not None:
        rows.append(Row(f"perplexity_{name}", perplexity, None, None, "perplexity"))
    if distance is not None:
        kl = Row(f"kl_{name}", distance.kl, distance.kl_low, distance.kl_high, "nats per token")
        rows += [kl, Row(f"top1_{name}", distance.top1, None, None, "share of tokens")]
    return rows


if __name__ == "__main__":
    main()
