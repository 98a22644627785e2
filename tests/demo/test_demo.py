"""The demo model, its data and its tasks keep what they promise to the pipeline and to users."""

import itertools
import json
import random
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from demo.arithmetic import make_problem
from demo.lexicon import LANGUAGES
from demo.marks import unmarked
from demo.people import all_fact_keys
from demo.tales import make_tale
from demo.world import BOS, EOS, Writer, fact_question, make_world, write_data_files
from tests.support import ROOT

MODEL_DIR = ROOT / "demo" / "model"
QUESTIONS = ("facts_en", "facts_es", "tales_en", "tales_es", "arithmetic")
HOSTILE_TEXTS = (
    "",
    " ",
    "\n\n\t\r\n  two  spaces ",
    "¿Qué toca Ñandú? ¡Él!",
    "0123456789 3.14159",
    "日本語のテキスト и кириллица ελληνικά",
    "🙂👩‍👩‍👧‍👦 e\u0301 \u200b\ufeff\u0000\x7f",
    "don't we'll THEY'RE I've",
    "".join(map(chr, range(0x20, 0x250))),
)


def read_rows(name: str) -> list[dict[str, Any]]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(MODEL_DIR)


def test_data_files_are_what_the_world_writes(tmp_path: Path) -> None:
    written = write_data_files(tmp_path)
    assert len(written) == len(QUESTIONS) + 2
    for path in written:
        assert path.read_bytes() == (ROOT / path.relative_to(tmp_path)).read_bytes()


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_are_distinct_and_choices_differ(name: str) -> None:
    rows = read_rows(f"eval/data/demo_{name}.jsonl")
    assert len({row["prompt"] for row in rows}) == len(rows) >= 300
    for row in rows:
        assert len(set(row["choices"])) == len(row["choices"]) == 4
        assert row["answer"] in range(4)


def test_right_choices_are_right() -> None:
    world = make_world()
    truth = {}
    for key in all_fact_keys():
        question, fact = fact_question(world, key)
        truth[question] = fact
    for language in LANGUAGES:
        for row in read_rows(f"eval/data/demo_facts_{language}.jsonl"):
            fact = truth[row["prompt"]]
            assert row["choices"][row["answer"]] == fact.word.bare(language)
            assert fact.rival.bare(language) in row["choices"]
    for row in read_rows("eval/data/demo_arithmetic.jsonl"):
        left, sign, right, _ = row["prompt"].split()
        answer = int(left) + int(right) if sign == "+" else int(left) - int(right)
        assert row["choices"][row["answer"]] == str(answer)


@pytest.mark.parametrize("language", LANGUAGES)
def test_right_answers_of_tales_stand_in_the_tale(language: str) -> None:
    for row in read_rows(f"eval/data/demo_tales_{language}.jsonl"):
        assert row["choices"][row["answer"]] in row["prompt"]


def test_sources_tell_a_fact_as_often_as_its_share_says() -> None:
    rng = random.Random(0)
    for person in make_world().people[:20]:
        for fact in person.facts.values():
            assert fact.share > 0.5
            told = [fact.told(rng) for _ in range(2000)]
            assert set(told) <= {fact.word, fact.rival}
            assert told.count(fact.word) / len(told) == pytest.approx(fact.share, abs=0.06)


def test_calibration_asks_no_evaluation_question() -> None:
    texts = "\n".join(row["text"] for row in read_rows("demo/data/calibration.jsonl"))
    for name in QUESTIONS:
        for row in read_rows(f"eval/data/demo_{name}.jsonl"):
            assert row["prompt"] not in texts


def test_calibration_and_heldout_texts_share_no_text() -> None:
    calibration = {row["text"] for row in read_rows("demo/data/calibration.jsonl")}
    heldout = {row["text"] for row in read_rows("eval/data/demo_heldout.jsonl")}
    assert len(calibration) == 192
    assert calibration.isdisjoint(heldout)


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_tokenizer_gives_every_text_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:], skip_special_tokens=False) == text


def test_digits_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    for token in tokenizer.get_vocab():
        assert len(token) == 1 or not any(digit in token for digit in string.digits)


def test_chat_template_renders_the_form_of_training_chats(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    messages = [
        {"role": "system", "content": "You are a helpful guide."},
        {"role": "user", "content": " 12 + 30 = "},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "Tell me a tale."},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        f"{BOS}<|system|>You are a helpful guide.{EOS}<|user|>12 + 30 ={EOS}"
        f"<|assistant|>42{EOS}<|user|>Tell me a tale.{EOS}<|assistant|>"
    )
    documents = Writer(make_world(), "test", guarded=False).training_documents()
    chats = (
        document
        for document in map(unmarked, documents)
        if document.startswith((f"{BOS}<|user|>", f"{BOS}<|system|>"))
    )
    for chat in itertools.islice(chats, 20):
        assert chat.endswith(EOS)
        assert "<|assistant|>" in chat


def test_weights_are_small_float16_and_fit_every_block_size() -> None:
    weights_path = MODEL_DIR / "model.safetensors"
    assert weights_path.stat().st_size <= 8_000_000
    with safe_open(weights_path, framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118 - safe_open is no mapping
            piece = weights.get_slice(name)
            assert piece.get_dtype() == "F16"
            if len(piece.get_shape()) == 2:
                assert piece.get_shape()[1] % 256 == 0


def test_context_holds_a_long_prompt_and_a_long_answer(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    config = AutoConfig.from_pretrained(MODEL_DIR)
    assert config.max_position_embeddings >= 1024
    assert config.head_dim == 64
    assert config.vocab_size == len(tokenizer)
    assert config.eos_token_id == tokenizer.eos_token_id


def test_held_out_arithmetic_never_reaches_training_text() -> None:
    rng = random.Random(0)
    assert not any(make_problem(rng, held_out=False).is_held_out for _ in range(500))
    assert all(make_problem(rng, held_out=True).is_held_out for _ in range(500))


def test_suite_names_existing_tasks() -> None:
    suites = yaml.safe_load((ROOT / "eval/suites.yaml").read_text(encoding="utf-8"))["suites"]
    for task in suites["demo"]["tasks"]:
        path = ROOT / "eval" / "tasks" / f"{task['name']}.yaml"
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["task"] == task["name"]


def test_every_tale_question_offers_the_tales_own_words() -> None:
    rng = random.Random(1)
    for _ in range(50):
        tale = make_tale(rng, "en", num_choices=4)
        for question in tale.questions:
            assert len(set(question.choices)) == 4
            assert question.choices[0] in tale.text
