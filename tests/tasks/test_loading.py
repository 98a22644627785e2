"""Suites of local tasks, against plain lm-eval on the same weights, and every way to be wrong."""

import codecs
import gzip
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import chdir, closing
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import huggingface_hub
import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.errors import InputError
from pipeline.core.record import sha256_hex
from pipeline.evaluation.lm_eval_model import LmEvalModel
from pipeline.evaluation.task_runs import Rows, Stopping, TaskQuestions, run_tasks, task_scores
from pipeline.gate.sequential import ordered
from pipeline.params.suites import Suite, SuiteTask, read_suite
from pipeline.records.evaluation import DocumentRecord, TaskScore
from pipeline.tasks.loading import loaded_tasks
from tests.engines.scored_models import (
    OpenScorer,
    open_llama_cpp,
    open_transformers,
    tiny_model_dir,
)
from tests.models import CORPUS

WORDS = " ".join(CORPUS).split()

QUESTIONS = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "eval/data/questions.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
    "metadata": {"version": 1.5},
}
TEXTS = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "eval/data/texts.jsonl"}},
    "test_split": "test",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [
        {
            "metric": "byte_perplexity",
            "aggregation": "weighted_perplexity",
            "higher_is_better": False,
        }
    ],
    "metadata": {"version": 1.0},
}
WRITING = QUESTIONS | {
    "output_type": "generate_until",
    "doc_to_choice": None,
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": [" a", "\n"], "max_gen_toks": 8, "do_sample": False},
    "metric_list": [
        {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True},
    ],
}
SUITE = Suite(
    tasks=(
        SuiteTask(name="questions", metric="acc_norm"),
        SuiteTask(name="texts", metric="byte_perplexity"),
        SuiteTask(name="writing", metric="exact_match"),
    )
)


def write_jsonl(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_task(root: Path, name: str, config: Mapping[str, Any]) -> None:
    path = root / "eval" / "tasks" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"task": name} | dict(config)))  # JSON is YAML


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace with three tasks of every kind that lm-eval asks a model for."""
    questions = [
        {
            "prompt": " ".join(WORDS[start : start + 3 + start % 7]) + ("  " if start % 3 else ""),
            "choices": [WORDS[start], " ".join(WORDS[5 : 7 + start % 4]), "vende pan"],
            "answer": start % 3,
        }
        for start in range(30)
    ]
    texts = [{"text": " ".join(WORDS[start:]) * (1 + 9 * (start == 3))} for start in range(6)]
    write_jsonl(tmp_path / "eval/data/questions.jsonl", questions)
    write_jsonl(tmp_path / "eval/data/texts.jsonl", texts)
    write_task(tmp_path, "questions", QUESTIONS)
    write_task(tmp_path, "texts", TEXTS)
    write_task(tmp_path, "writing", WRITING)
    return tmp_path


class Answered(NamedTuple):
    scores: dict[str, TaskScore]
    documents: Rows


def score(
    root: Path,
    open_scorer: OpenScorer = open_transformers,
    *,
    suite: Suite = SUITE,
    batch_size: int = 4,
    max_documents: int | None = None,
) -> Answered:
    with closing(open_scorer()) as scorer, loaded_tasks(root, suite) as tasks:
        tokenizer = tokenizer_of(tiny_model_dir())
        model = LmEvalModel(scorer, tokenizer, batch_size=batch_size)
        questions = [TaskQuestions(it, tokenizer, max_documents=max_documents) for it in tasks]
        rows = run_tasks(questions, model)
        return Answered(task_scores(questions, rows), rows)


def plain_lm_eval(root: Path) -> dict[str, Any]:
    """The same tasks with lm-eval's own Hugging Face model and its own command of the run."""
    model = HFLM(
        pretrained=unpacked_model(tiny_model_dir()),
        tokenizer=tokenizer_of(tiny_model_dir()),
        batch_size=4,
        device="cpu",
    )
    with chdir(root):
        manager = TaskManager(include_path=str(root / "eval/tasks"), include_defaults=False)
        results: dict[str, Any] = lm_eval.simple_evaluate(
            model,
            tasks=[task.name for task in SUITE.tasks],
            task_manager=manager,
            bootstrap_iters=10,
        )
        return results


@pytest.mark.slow
def test_scores_are_those_of_plain_lm_eval(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
    plain = plain_lm_eval(root)
    ours = score(root)
    questions = plain["results"]["questions"]
    assert ours.scores["questions"].value == questions["acc_norm,none"]
    assert ours.scores["questions"].stderr == questions["acc_norm_stderr,none"]
    assert ours.scores["questions"].version == "1.5"
    assert ours.scores["writing"].value == plain["results"]["writing"]["exact_match,none"]
    assert ours.scores["texts"].value == pytest.approx(
        plain["results"]["texts"]["byte_perplexity,none"], rel=1e-6
    )
    assert ours.scores["texts"].stderr is None
    assert not ours.scores["texts"].higher_is_better
    rows = [row for task in SUITE.tasks for row in plain["samples"][task.name]]
    for document, row in zip(ours.documents, rows, strict=True):
        assert (document.doc_id, document.doc_hash) == (row["doc_id"], row["doc_hash"])
        assert document.prompt_hash == row["prompt_hash"]
        answers = [answer[0] for answer in row["resps"]]
        if document.task == "writing":
            assert document.generated == answers[0]
            assert document.logprobs is None
        elif document.task == "texts":
            assert document.logprobs == pytest.approx(answers, rel=1e-5)
        else:
            assert document.logprobs == pytest.approx([it[0] for it in answers], abs=1e-4)
            assert document.metrics == {name: row[name] for name in ("acc", "acc_norm")}


@pytest.mark.slow
def test_both_engines_give_the_same_scores_within_noise(root: Path) -> None:
    one, other = score(root), score(root, open_llama_cpp)
    for a, b in zip(one.documents, other.documents, strict=True):
        assert a.doc_hash == b.doc_hash
        if a.logprobs is not None:
            assert b.logprobs == pytest.approx(a.logprobs, rel=2e-3, abs=0.05)
    perplexity = one.scores["texts"].value
    assert other.scores["texts"].value == pytest.approx(perplexity, rel=1e-3)


@pytest.mark.slow
def test_the_batch_size_changes_no_answer(root: Path) -> None:
    one, other = score(root, batch_size=1), score(root, batch_size=16)
    for a, b in zip(one.documents, other.documents, strict=True):
        assert a.generated == b.generated
        for metric, value in a.metrics.items():
            assert value == pytest.approx(b.metrics[metric], rel=1e-5)


def test_the_first_documents_can_be_asked_for(root: Path) -> None:
    result = score(root, max_documents=3)
    assert [it.num_documents for it in result.scores.values()] == [3, 3, 3]
    assert [it.doc_id for it in result.documents] == [0, 1, 2] * 3


def test_nothing_is_written_but_what_the_caller_writes(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    before = datasets.config.HF_DATASETS_CACHE
    files = sorted(root.rglob("*"))
    with chdir(home):
        score(root, max_documents=1)
    assert sorted(root.rglob("*")) == files
    assert list(home.iterdir()) == []
    assert before == datasets.config.HF_DATASETS_CACHE


def suite_of(name: str, metric: str) -> Suite:
    return Suite(tasks=(SuiteTask(name=name, metric=metric),))


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        (
            suite_of("quests_on", "acc"),
            "quests_on: neither a task in eval/tasks nor one of .* questions, texts",
        ),
        (suite_of("questions", "f1"), "questions: metric = 'f1': the task has acc, acc_norm"),
        (suite_of("questions", "acc,strict"), "metric = 'acc,strict': expected 'acc,none'"),
    ],
)
def test_a_wrong_suite_is_refused(root: Path, suite: Suite, message: str) -> None:
    with pytest.raises(InputError, match=message), loaded_tasks(root, suite):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"dataset_kwargs": {"data_files": {"test": ["eval/data/no.jsonl"]}}},
            "wrong: data file eval/data/no.jsonl is missing; put it at /",
        ),
        ({"test_split": "tset"}, "wrong: cannot be loaded"),
        ({"output_type": "guess"}, "wrong: cannot be loaded: .*guess"),
        ({"doc_to_text": "{{prompt"}, "wrong: cannot be loaded"),
    ],
)
def test_a_wrong_task_is_one_line(root: Path, change: dict[str, Any], message: str) -> None:
    write_task(root, "wrong", QUESTIONS | change)
    with (
        pytest.raises(InputError, match=message) as caught,
        loaded_tasks(root, suite_of("wrong", "acc")),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_an_empty_data_file_is_one_line(root: Path) -> None:
    (root / "eval/data/questions.jsonl").write_text("")
    with (
        pytest.raises(InputError, match=r"questions: data file eval/data/quest.* is empty"),
        loaded_tasks(root, SUITE),
    ):
        pass


def test_data_sets_that_cannot_be_had_are_all_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    for name in ("one", "two"):
        write_task(root, name, QUESTIONS | {"dataset_path": f"org/{name}", "dataset_kwargs": {}})
    suite = Suite(tasks=(*suite_of("one", "acc").tasks, *suite_of("two", "acc").tasks))
    with (
        pytest.raises(InputError, match=r"no data for one \(org/one: .*; two \(org/two: .*HF_HOME"),
        loaded_tasks(root, suite),
    ):
        pass


def test_a_group_is_one_task_with_the_documents_of_all_members(root: Path) -> None:
    write_task(root, "again", QUESTIONS)
    group = {"group": "both", "task": ["questions", "again"], "metadata": {"version": 3}}
    (root / "eval/tasks/both.yaml").write_text(json.dumps(group))
    result = score(root, suite=suite_of("both", "acc"))
    assert [row.doc_id for row in result.documents] == list(range(60))
    own = score(root, suite=suite_of("questions", "acc"))
    assert result.scores["both"].value == pytest.approx(own.scores["questions"].value)


def test_a_suite_says_how_many_examples_are_shown(root: Path) -> None:
    write_task(root, "shown", QUESTIONS | {"fewshot_split": "test"})
    none, two = (
        score(root, suite=Suite(tasks=(SuiteTask(name="shown", metric="acc", num_fewshot=number),)))
        for number in (0, 2)
    )
    for a, b in zip(none.documents, two.documents, strict=True):
        assert a.doc_hash == b.doc_hash
        assert a.prompt_hash != b.prompt_hash


def test_documents_that_share_a_passage_are_one_cluster(root: Path) -> None:
    task = SuiteTask(name="questions", metric="acc", cluster="answer")
    clusters = [row.cluster for row in score(root, suite=Suite(tasks=(task,))).documents]
    assert len(set(clusters)) == 3
    assert clusters[0] == clusters[3] == clusters[27]
    for row in score(root, suite=suite_of("questions", "acc")).documents:
        assert row.cluster == row.doc_hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "1.0"}, "questions: version = '1.0': the task is version 1.5"),
        ({"cluster": "story"}, "cluster = 'story': documents have prompt, choices, answer"),
    ],
)
def test_what_a_suite_says_of_a_task_must_be_so(
    root: Path, change: dict[str, Any], message: str
) -> None:
    suite = Suite(tasks=(SuiteTask(name="questions", metric="acc", **change),))
    with pytest.raises(InputError, match=message), loaded_tasks(root, suite):
        pass


def test_a_metric_without_a_number_for_each_document_is_refused(root: Path) -> None:
    bleu = [{"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}]
    write_task(root, "writing", WRITING | {"metric_list": bleu})
    with pytest.raises(InputError, match="metric = 'bleu': has no number for each document"):
        score(root, suite=suite_of("writing", "bleu"))


def test_a_conversation_is_written_by_the_models_template(root: Path) -> None:
    suite = Suite(tasks=(SuiteTask(name="writing", metric="exact_match", chat=True),))
    with closing(open_transformers()) as scorer, loaded_tasks(root, suite) as tasks:
        tokenizer = tokenizer_of(tiny_model_dir())
        model = LmEvalModel(scorer, tokenizer, batch_size=4)
        with pytest.raises(InputError, match=r"^the base's chat template .* set chat to false"):
            TaskQuestions(tasks[0], tokenizer, max_documents=2)
        tokenizer.chat_template = "{% for m in messages %}<{{m.role}}>{{m.content}}{% endfor %}"
        questions = [TaskQuestions(tasks[0], tokenizer, max_documents=2)]
        documents = run_tasks(questions, model)
    for row, prompt in zip(documents, read_prompts(root), strict=False):
        assert row.prompt_hash == sha256_hex(f"<user>{prompt}".encode())


def read_prompts(root: Path) -> list[str]:
    lines = (root / "eval/data/questions.jsonl").read_text().splitlines()
    return [json.loads(line)["prompt"] for line in lines]


FORMS = {
    "mark.jsonl": lambda lines: codecs.BOM_UTF8 + lines,
    "windows.jsonl": lambda lines: lines.replace(b"\n", b"\r\n\r\n"),
    "lines.json": bytes,
    "list.json": lambda lines: b"[" + b",".join(lines.splitlines()) + b"]",
    "lines.jsonl.gz": gzip.compress,
    "list.json.gz": lambda lines: gzip.compress(
        b"[" + b",".join(lines.splitlines()) + b"]", mtime=0
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_task_reads_its_data_in_every_form_that_people_have(root: Path, name: str) -> None:
    lines = (root / "eval/data/questions.jsonl").read_bytes()
    assert loaded_prompts(root) == read_prompts(root)
    (root / name).write_bytes(FORMS[name](lines))
    write_task(root, "questions", QUESTIONS | {"dataset_kwargs": {"data_files": {"test": name}}})
    assert loaded_prompts(root) == read_prompts(root)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            gzip.compress(b'{"prompt": "x"}\n' * 400, mtime=0)[:-9],
            "cannot be expanded: Compressed file end",
        ),
        (gzip.compress(b" " * (1 << 22), mtime=0), "expands to more than"),
    ],
)
def test_a_task_with_hostile_data_is_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, said: str
) -> None:
    monkeypatch.setattr("pipeline.core.data_files.ALWAYS_ALLOWED_BYTES", 1 << 16)
    (root / "data.jsonl.gz").write_bytes(data)
    files = {"data_files": {"test": "data.jsonl.gz"}}
    write_task(root, "questions", QUESTIONS | {"dataset_kwargs": files})
    with pytest.raises(InputError, match=rf"data\.jsonl\.gz: {said}") as caught:
        loaded_prompts(root)
    assert "\n" not in str(caught.value)


def loaded_prompts(root: Path) -> list[str]:
    with loaded_tasks(root, suite_of("questions", "acc")) as tasks:
        return [document["prompt"] for document in tasks[0].parts[0].eval_docs]


def test_requests_longer_than_the_context_are_counted(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "pan y sal " * 600, "choices": ["a", "b"], "answer": 0}]
    write_jsonl(root / "eval/data/questions.jsonl", rows)
    score(root, suite=suite_of("questions", "acc"))
    assert "tiny: 2 of 2 requests are longer than the model's context of 1024" in (
        capsys.readouterr().err
    )


def test_an_evaluation_may_stop_early(root: Path) -> None:
    write_task(root, "again", QUESTIONS)
    suite = Suite(tasks=(*suite_of("questions", "acc").tasks, *suite_of("again", "acc").tasks))
    seen: list[int] = []

    def open_tasks(rows: Sequence[DocumentRecord]) -> list[str]:
        seen.append(len(rows))
        return {20: ["questions", "again"], 40: ["again"]}.get(len(rows), [])

    with closing(open_transformers()) as scorer, loaded_tasks(root, suite) as tasks:
        tokenizer = tokenizer_of(tiny_model_dir())
        model = LmEvalModel(scorer, tokenizer, batch_size=4)
        questions = [TaskQuestions(it, tokenizer, max_documents=None) for it in tasks]
        whole = run_tasks(questions, model)
        stopped = run_tasks(questions, model, stopping=Stopping(3, open_tasks))
    assert seen == [20, 40, 50]
    assert Counter(row.task for row in stopped) == {
        "questions": 20,
        "again": 30,
    }
    by_id = {(row.task, row.doc_id): row for row in whole}
    for row in stopped:
        assert row.prompt_hash == by_id[row.task, row.doc_id].prompt_hash
        assert row.logprobs == pytest.approx(by_id[row.task, row.doc_id].logprobs, abs=1e-4)
    first = ordered([row for row in whole if row.task == "questions"])[:20]
    assert {row.doc_id for row in first} == {
        row.doc_id for row in stopped if row.task == "questions"
    }


def test_a_digest_follows_what_is_asked(root: Path) -> None:
    def digest(suite: Suite) -> str:
        with loaded_tasks(root, suite) as (task,):
            questions = TaskQuestions(task, tokenizer_of(tiny_model_dir()), max_documents=None)
            return questions.digest(range(5))

    before = digest(suite_of("questions", "acc"))
    assert digest(suite_of("questions", "acc")) == before
    assert digest(suite_of("questions", "acc_norm")) != before
    write_task(root, "questions", QUESTIONS | {"doc_to_text": "Now: {{prompt}}"})
    assert digest(suite_of("questions", "acc")) != before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": True, "temperature": 0.7}, "asks for sampling"),
        ({"do_sample": False, "max_gen_toks": 1024}, "max_gen_toks = 1024: expected less than"),
    ],
)
def test_settings_of_generation_that_cannot_be_kept(
    root: Path, settings: dict[str, Any], message: str
) -> None:
    write_task(root, "writing", WRITING | {"generation_kwargs": {"until": ["\n"]} | settings})
    with pytest.raises(InputError, match=message):
        score(root, suite=suite_of("writing", "exact_match"))


def test_a_suite_is_read_by_its_name(root: Path) -> None:
    path = root / "eval" / "suites.yaml"
    path.write_text("suites:\n  demo:\n    tasks:\n      - {name: texts, metric: acc}\n")
    assert read_suite(root, "demo") == suite_of("texts", "acc")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("suites: {other: {tasks: [{name: a, metric: acc}]}}", "suite = 'demo': .* there: other"),
        ("suites: {demo: {tasks: []}}", "suites.demo.tasks"),
        ("suites: {demo: {tasks: [{name: a}]}}", "suites.demo.tasks.0.metric: missing"),
        ("suites: {demo: {tasks: [{name: a, metric: b, x: 1}]}}", "x: unknown key"),
        ("suites: [", "not valid YAML"),
    ],
)
def test_a_wrong_suites_file_is_one_line(root: Path, content: str, message: str) -> None:
    (root / "eval" / "suites.yaml").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_suite(root, "demo")
    assert "\n" not in str(caught.value)
