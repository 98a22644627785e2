"""The texts of single documents of a suite, read back through their tasks."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from pipeline.core.errors import InputError
from pipeline.params.suite_file import read_suite
from pipeline.tasks.loading import loaded_tasks
from pipeline.verbs.explain_facts import Question


def read_questions(
    root: Path, suite: str, wanted: Collection[tuple[str, int]]
) -> dict[tuple[str, int], Question]:
    """Questions by task and document number; without those whose text cannot be had any more."""
    tasks = {task for task, _ in wanted}
    chosen = read_suite(root, suite)
    chosen = chosen.model_copy(
        update={"tasks": tuple(it for it in chosen.tasks if it.name in tasks)}
    )
    try:
        with loaded_tasks(root, chosen) as loaded:
            # A group numbers the documents of every member from 0: they stay without a text.
            single = {it.name: it.parts[0] for it in loaded if len(it.parts) == 1}
            return {key: _question(single[key[0]], key[1]) for key in wanted if key[0] in single}
    except (InputError, LookupError):  # data that is gone since explains less, and breaks nothing
        return {}


def _question(task: Any, number: int) -> Question:
    document = task.eval_docs[number]
    has_choices = task.config.doc_to_choice is not None
    choices = tuple(map(str, task.doc_to_choice(document))) if has_choices else ()
    return Question(str(task.doc_to_text(document)), choices)
