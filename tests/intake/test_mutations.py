"""Mutations of a checkpoint's files are read, or refused in one line, and write nothing outside.

`python -m benchmarks.intake` tries thousands of them on a real model, each as a command.
"""

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks.mutations import SPECIAL_TOKENS, TEMPLATE, mutated
from benchmarks.odd_values import ODD_TEMPLATES
from pipeline.checkpoint.checks import read_shards
from pipeline.checkpoint.safetensors_header import read_header
from pipeline.core.errors import InputError
from pipeline.core.files import directory_records
from pipeline.intake.examination import examine_small_files
from pipeline.intake.weights import account_for_tensors
from tests.models import tiny_llama

CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
NUM_CASES = 60
MAX_CHARACTERS = 1000


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_llama(tmp_path_factory.mktemp("mutations") / "model", shards=2)
    (model / TEMPLATE).write_text(CHAT)
    (model / SPECIAL_TOKENS).write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return model


@pytest.fixture
def model(plain: Path, tmp_path: Path) -> Path:
    return shutil.copytree(plain, tmp_path / "model")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(model: Path) -> str | None:
    """Examine a checkpoint as `plan` does; the error, None where it is taken."""
    try:
        examine_small_files(model)
        shards = read_shards(model)
        assert shards is not None
        headers = [read_header(model / name) for name in shards]
        shapes = {name: info.shape for header in headers for name, info in header.items()}
        account_for_tensors(model, shapes)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("case", range(NUM_CASES))
def test_a_mutation_is_read_or_refused_in_one_line(plain: Path, model: Path, case: int) -> None:
    files = {path.name: path.read_bytes() for path in sorted(plain.iterdir())}
    mutated(files, Random(f"tests {case}")).apply(model)
    sources = directory_records(plain)
    message = refusal(model)
    if message is not None:
        assert message.isprintable()
        assert len(message) < MAX_CHARACTERS
    assert directory_records(plain) == sources
    assert sorted(path.name for path in model.parent.iterdir()) == ["model"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("open", "TemplateSyntaxError: unexpected 'end of template'"),
        ("loops in loops", "LimitReachedError: it takes more than 2 s of CPU time"),
        ("a long text", "LimitReachedError: it takes more than 1024 MiB of memory"),
        ("a deep macro", "RecursionError: "),
        ("nested 5,000 deep", "RecursionError: "),
    ],
)
def test_a_template_that_no_conversation_gets_through_is_refused(
    model: Path, name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.checkpoint.chat_rendering.MAX_SECONDS", 2.0)
    (model / TEMPLATE).write_text(ODD_TEMPLATES[name])
    message = refusal(model)
    assert message is not None
    start = f"{TEMPLATE}: the chat template cannot be rendered ({reason}"
    assert message.startswith(start), message


@pytest.mark.parametrize("name", ["a long date", "a million characters"])
def test_a_template_that_writes_much_is_refused(model: Path, name: str) -> None:
    (model / TEMPLATE).write_text(ODD_TEMPLATES[name])
    message = refusal(model)
    assert message is not None
    assert "characters of two short messages, expected at most 262144" in message


@pytest.mark.parametrize("name", ["raises", "attributes", "globals", "a date", "empty"])
def test_a_template_that_refuses_two_messages_is_no_fault(model: Path, name: str) -> None:
    (model / TEMPLATE).write_text(ODD_TEMPLATES[name])
    assert refusal(model) is None


@pytest.mark.parametrize("value", [5, {"a": "b"}, [{"name": "default"}], ["x"]])
def test_a_template_of_another_type_is_refused(model: Path, value: object) -> None:
    (model / TEMPLATE).unlink()
    edit(model / "tokenizer_config.json", chat_template=value)
    message = refusal(model)
    assert message is not None
    assert message.startswith("tokenizer_config.json: chat_template = ")


@pytest.mark.parametrize("size", [0, -1, 10**6, 10**30, 1e300])
def test_a_size_that_no_model_has_is_refused_at_once(model: Path, size: float) -> None:
    edit(model / "config.json", num_hidden_layers=size)
    message = refusal(model)
    assert message is not None
    assert message.startswith("config.json: num_hidden_layers = ")


def test_a_file_that_is_nested_deep_is_refused(model: Path) -> None:
    nested = json.loads("[" * 100 + "]" * 100)
    edit(model / "config.json", other=nested)
    assert refusal(model) == "config.json: nested more than 64 deep; get the file again"


def test_half_of_a_surrogate_pair_is_refused(model: Path) -> None:
    (model / "generation_config.json").write_text(r'{"name": "\ud800"}')
    assert refusal(model) == ("generation_config.json: not valid JSON in UTF-8; get the file again")


def test_a_tokenizer_that_fails_on_some_text_is_refused(model: Path) -> None:
    """A unigram model without an unknown token has no answer to letters that it does not know."""
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    tokens = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    few = [[token, -1.0] for token in tokens[:40]]
    content["model"] = {"type": "Unigram", "unk_id": None, "vocab": few}
    path.write_text(json.dumps(content))
    message = refusal(model)
    assert message is not None
    assert "reading 'a b" in message
    assert "\n" not in message
