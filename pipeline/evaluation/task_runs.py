"""Ask a model the questions of loaded lm-eval tasks, and score its answers as lm-eval does.

The requests of a task are built once, with lm-eval's own rules and for all of its documents. Any of
them can then be asked, so that an evaluation may stop early. The digest of requests covers every
character that a model is asked. Models are those of `pipeline.evaluation.lm_eval_model`.
"""

import inspect
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean, mean_stderr
from lm_eval.utils import handle_non_serializable, hash_string

from pipeline.core.errors import InputError
from pipeline.core.record import sha256_hex
from pipeline.evaluation.lm_eval_model import LmEvalModel, chat_text
from pipeline.gate.sequential import look_sizes, order_key
from pipeline.params.suites import SUITES_FILE
from pipeline.records.evaluation import DocumentRecord, TaskScore
from pipeline.tasks.loading import LoadedTask

Rows = tuple[DocumentRecord, ...]
CachedRows = Callable[[str, Callable[[], Rows]], Rows]
"""Takes the digest of requests; returns the rows of an earlier run, or computes them."""


@dataclass(frozen=True)
class Stopping:
    """Plan a sequential evaluation, which looks `num_looks` times at the answers so far.

    `open_tasks` takes all rows; the tasks that it names get their next documents.
    """

    num_looks: int
    open_tasks: Callable[[Rows], Collection[str]]


def computed(_digest: str, compute: Callable[[], Rows]) -> Rows:
    return compute()


def run_tasks(
    questions: Sequence["TaskQuestions"],
    model: LmEvalModel,
    *,
    cached: CachedRows = computed,
    stopping: Stopping | None = None,
) -> Rows:
    """Ask a model all documents of every task, or until `stopping` names no more tasks.

    Returns the rows task by task, each task's by number.
    """
    num_looks = stopping.num_looks if stopping else 1
    rows: dict[str, Rows] = {task.name: () for task in questions}
    open_tasks: Collection[str] = rows.keys()
    for look in range(num_looks):
        for task in questions:
            if task.name in open_tasks:
                stop = look_sizes(task.num_documents, num_looks)[look]
                numbers = task.order(sequential=stopping is not None)[len(rows[task.name]) : stop]
                ask = partial(task.ask, model, numbers)
                rows[task.name] += cached(task.digest(numbers), ask)
        if stopping is not None:
            open_tasks = stopping.open_tasks(tuple(chain.from_iterable(rows.values())))
    return tuple(row for own in rows.values() for row in sorted(own, key=lambda row: row.doc_id))


def task_scores(questions: Sequence["TaskQuestions"], rows: Rows) -> dict[str, TaskScore]:
    """Return each task's score. Raises InputError like `task_score`."""
    return {
        task.name: task_score(task.loaded, [row for row in rows if row.task == task.name])
        for task in questions
    }


class TaskQuestions:
    """Hold the requests of one task by document, for any model; documents are numbered from 0.

    At most the first `max_documents` (None: all). `tokenizer` is the base's, for tasks that ask
    through its chat template.
    """

    def __init__(self, loaded: LoadedTask, tokenizer: Any, *, max_documents: int | None) -> None:
        self.name = loaded.name
        self.loaded = loaded
        documents: list[tuple[Any, list[Instance]]] = []
        for part in loaded.parts:
            documents += _requests(part, tokenizer, chat=loaded.chat, max_documents=max_documents)
        self._documents = documents[:max_documents]

    @property
    def num_documents(self) -> int:
        return len(self._documents)

    def order(self, *, sequential: bool) -> list[int]:
        """Return all numbers; for a sequential evaluation in the order of `sequential.ordered`."""
        numbers = range(self.num_documents)
        if not sequential:
            return list(numbers)
        clusters = {number: self._identity(number)[1] for number in numbers}
        return sorted(numbers, key=lambda number: (order_key(clusters[number]), number))

    def _identity(self, number: int) -> tuple[str, str]:
        """Return the hash of a document, as in lm-eval, and its cluster."""
        document = self._documents[number][1][0].doc
        as_text = json.dumps(
            document, indent=2, default=handle_non_serializable, ensure_ascii=False
        )
        doc_hash = hash_string(as_text)
        field = self.loaded.cluster
        return doc_hash, doc_hash if field is None else hash_string(str(document[field]))

    def digest(self, numbers: Sequence[int]) -> str:
        """Return the sha256 of the task's rules and of these documents' requests and answers."""
        rules = [self.name, self.loaded.metric, self.loaded.filter, str(self.loaded.cluster)]
        rules += [_config_text(part) for part in self.loaded.parts]
        asked = [
            [number, str(part.doc_to_target(it[0].doc)), [request.arguments for request in it]]
            for number, (part, it) in ((number, self._documents[number]) for number in numbers)
        ]
        return sha256_hex(json.dumps([rules, asked], default=_source_text).encode())

    def ask(self, model: LmEvalModel, numbers: Sequence[int]) -> Rows:
        """Return the row of each of these documents. Raises InputError like the model's methods."""
        requests: dict[str, list[Instance]] = {}
        for number in numbers:
            for request in self._documents[number][1]:
                requests.setdefault(request.request_type, []).append(request)
        for kind, asked in requests.items():
            for request, answer in zip(asked, getattr(model, kind)(asked), strict=True):
                request.resps = [answer] * request.repeats
        return tuple(self._row(number) for number in numbers)

    def _row(self, number: int) -> DocumentRecord:
        part, requests = self._documents[number]
        part._instances = requests
        part.apply_filters()
        document = requests[0].doc
        answers = [request.resps[0] for request in requests]
        generated = answers[0] if isinstance(answers[0], str) else None
        metrics = part.process_results(
            document, [request.filtered_resps[self.loaded.filter] for request in requests]
        )
        doc_hash, cluster = self._identity(number)
        return DocumentRecord(
            task=self.name,
            doc_id=number,
            doc_hash=doc_hash,
            cluster=cluster,
            prompt_hash=hash_string(requests[0].arguments[0]),
            target=str(part.doc_to_target(document)),
            logprobs=None
            if generated is not None
            else tuple(_logprob(answer) for answer in answers),
            generated=generated,
            metrics={
                name: numbers
                for name, value in metrics.items()
                if (numbers := _numbers(value)) is not None
            },
        )


def _requests(
    part: Any, tokenizer: Any, *, chat: bool, max_documents: int | None
) -> list[tuple[Any, list[Instance]]]:
    """Return the task and the requests of each document, with the examples lm-eval would give."""
    part.build_all_requests(
        limit=max_documents,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        chat_template=partial(chat_text, tokenizer) if chat else None,
        tokenizer_name=str(tokenizer.name_or_path) if chat else "",
    )
    by_document: dict[int, list[Instance]] = {}
    for request in part.instances:
        by_document.setdefault(request.doc_id, []).append(request)
    return [(part, sorted(own, key=lambda request: request.idx)) for own in by_document.values()]


def _config_text(part: Any) -> str:
    """Return the task's settings without the metadata, which holds the path of its file."""
    settings = part.dump_config() | {"metadata": str(part.VERSION)}
    return json.dumps(settings, default=_source_text, sort_keys=True)


def _source_text(value: object) -> str:
    """Return the source of a task's function, so that a digest follows every change."""
    return inspect.getsource(value) if inspect.isfunction(value) else str(value)


def task_score(loaded: LoadedTask, rows: Sequence[DocumentRecord]) -> TaskScore:
    """Return lm-eval's aggregate of the metric over these documents.

    Its standard error is that of a mean; what lm-eval would bootstrap has none. Raises InputError
    for a metric that is no number for each document, such as BLEU.
    """
    values = [row.metrics[loaded.metric] for row in rows if loaded.metric in row.metrics]
    if len(values) < len(rows):
        raise InputError(
            f"{SUITES_FILE}: {loaded.name}: metric = {loaded.metric!r}: has no number for each "
            "document, and the gate compares documents; name another metric of the task"
        )
    aggregate = loaded.parts[0].aggregation()[loaded.metric]
    has_stderr = aggregate is mean and len(values) > 1
    return TaskScore(
        metric=loaded.metric,
        value=float(aggregate(values)),
        stderr=float(mean_stderr(values)) if has_stderr else None,
        higher_is_better=loaded.higher_is_better,
        num_documents=len(rows),
        version=loaded.version,
    )


def _logprob(answer: float | tuple[float, bool]) -> float:
    return float(answer[0] if isinstance(answer, tuple) else answer)


def _numbers(value: object) -> float | tuple[float, ...] | None:
    """Return a metric's value for one document; None for texts, such as BLEU's pair."""
    if isinstance(value, (bool, int, float, np.number)):
        return float(value)
    if isinstance(value, (tuple, list)) and all(
        isinstance(part, (bool, int, float, np.number)) for part in value
    ):
        return tuple(float(part) for part in value)
    return None
