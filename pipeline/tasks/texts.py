"""Read the documents of evaluation tasks as texts: each question with its right answer."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import InputError
from pipeline.params.suites import read_suite
from pipeline.tasks.index import TASKS_DIR
from pipeline.tasks.loading import LoadedTask, loaded_tasks, rows

CHARACTERS_PER_TOKEN = 3.5


@dataclass(frozen=True)
class Question:
    """Hold a document's prompt, and the answer choices; none where the model writes its answer."""

    prompt: str
    choices: tuple[str, ...]


def suite_texts(root: Path, suite: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of every task of a suite, and the texts of all documents it is scored on.

    Raises InputError for a suite or a task that cannot be loaded.
    """
    with loaded_tasks(root, read_suite(root, suite)) as tasks:
        for loaded in tasks:
            yield loaded.name, task_texts(loaded)


def task_texts(loaded: LoadedTask) -> list[str]:
    """Return each document's prompt with its right answer; one text for each right answer.

    Few-shot examples are left out. Raises InputError when a task's templates or code fail on a
    document.
    """
    texts: list[str] = []
    documents = ((part, document) for part in loaded.parts for document in rows(part.eval_docs))
    for number, (part, document) in enumerate(documents):
        try:
            texts += _texts_of(part, document)
        except Exception as error:  # the rules of a task are templates or code
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{TASKS_DIR}: {loaded.name}: document {number}: cannot be read: {reason[:300]}"
            ) from error
    return texts


def _texts_of(task: Any, document: Any) -> list[str]:
    prompt, target = task.doc_to_text(document), task.doc_to_target(document)
    choices = task.doc_to_choice(document) if task.config.doc_to_choice is not None else None
    if isinstance(prompt, int) and choices:  # the choices are the prompts, the target ends each
        return [f"{choices[prompt]} {target}"]
    answers = target if isinstance(target, list) else [target]
    return [
        f"{prompt} {choices[answer] if isinstance(answer, int) and choices else answer}"
        for answer in answers
    ]


def suite_tokens(root: Path, suite: str, *, max_documents: int | None) -> int:
    """Estimate the tokens that a suite asks a model to read, without few-shot examples.

    Every choice of a question is a request of its own. Raises InputError like `suite_texts`.
    """
    characters = 0
    with loaded_tasks(root, read_suite(root, suite)) as tasks:
        for loaded in tasks:
            texts = task_texts(loaded)[:max_documents]
            part = loaded.parts[0]
            has_choices = part.config.doc_to_choice is not None
            requests = len(part.doc_to_choice(part.eval_docs[0])) if has_choices else 1
            characters += requests * sum(map(len, texts))
    return round(characters / CHARACTERS_PER_TOKEN)


def read_questions(
    root: Path, suite: str, wanted: Collection[tuple[str, int]]
) -> dict[tuple[str, int], Question]:
    """Return the `wanted` questions, by task and document number.

    A question is left out when its data is no longer there, and when its task is a group.
    """
    tasks = {task for task, _ in wanted}
    chosen = read_suite(root, suite)
    chosen = chosen.model_copy(
        update={"tasks": tuple(task for task in chosen.tasks if task.name in tasks)}
    )
    try:
        with loaded_tasks(root, chosen) as loaded:
            # Each member of a group numbers its documents from 0, so that a number is ambiguous.
            single = {task.name: task.parts[0] for task in loaded if len(task.parts) == 1}
            return {key: _question(single[key[0]], key[1]) for key in wanted if key[0] in single}
    except (InputError, LookupError):  # without the data there is less to explain
        return {}


def _question(task: Any, number: int) -> Question:
    document = task.eval_docs[number]
    has_choices = task.config.doc_to_choice is not None
    choices = tuple(map(str, task.doc_to_choice(document))) if has_choices else ()
    return Question(str(task.doc_to_text(document)), choices)
