"""A checkpoint's chat template is known by what it renders."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.ollama.chat_families import PROBES
from pipeline.ollama.chat_template import ChatTemplate
from pipeline.ollama.modelfile_facts import read_modelfile_facts
from tests.models import tiny_llama
from tests.support import ROOT

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' "
    "+ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' %}{% if loop.first %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\\n\\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') + m['content'] | trim "
    "+ '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


def with_template(path: Path, template: str) -> Path:
    tiny_llama(path)
    (path / "chat_template.jinja").write_text(template)
    return path


@pytest.mark.parametrize(
    ("template", "family"), [(CHATML, "ChatML"), (LLAMA3, "Llama 3"), (GEMMA, "Gemma")]
)
def test_known_templates_have_a_go_template(tmp_path: Path, template: str, family: str) -> None:
    go = ChatTemplate(with_template(tmp_path / "model", template)).go_template()
    assert go.family == family, go.reason


def test_a_template_that_renders_tools_has_none(tmp_path: Path) -> None:
    with_tools = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML
    go = ChatTemplate(with_template(tmp_path / "model", with_tools)).go_template()
    assert go.reason == "the chat template is not quite ChatML: tools"


def test_the_demo_has_a_go_template_and_knows_where_a_turn_ends() -> None:
    template = ChatTemplate(ROOT / "demo" / "model")
    go = template.go_template()
    assert go.text is not None
    assert "<|bos|>" not in go.text
    assert template.end_of_turn() == "<|eos|>"
    assert template.render(PROBES["answer of a tool"]) is None


def test_the_token_that_ends_a_turn_stops_too(tmp_path: Path) -> None:
    model_dir = tmp_path / "model"
    shutil.copytree(ROOT / "demo" / "model", model_dir)
    generation = json.loads((model_dir / "generation_config.json").read_text())
    tokens = json.loads((model_dir / "tokenizer.json").read_text())["added_tokens"]
    pad = next(it for it in tokens if it["content"] == "<|pad|>")
    path = model_dir / "generation_config.json"
    path.write_text(json.dumps({**generation, "eos_token_id": pad["id"]}))
    assert read_modelfile_facts(model_dir).stop == ("<|pad|>", "<|eos|>")
