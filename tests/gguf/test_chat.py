"""The chat template inside a GGUF file gives llama.cpp the tokens that transformers gets."""

import json
import shutil
from pathlib import Path

import llama_cpp
import pytest
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.gguf import files as gguf
from pipeline.ollama.chat_families import PROBES
from tests.support import ROOT, missing

DATE = "{% if tools %}Today is {{ strftime_now('%d %B %Y') }}. {% endif %}"


@pytest.mark.slow
def test_the_embedded_template_is_the_models_own_and_gives_the_same_token_ids(
    tmp_path: Path,
) -> None:
    model_dir = tmp_path / "model"
    shutil.copytree(ROOT / "demo" / "model", model_dir)
    config = json.loads((model_dir / "tokenizer_config.json").read_text())
    config["chat_template"] = DATE + config["chat_template"]
    (model_dir / "tokenizer_config.json").write_text(json.dumps(config))
    if not (gguf.CONVERTER_DIR / "conversion").is_dir():
        missing("llama.cpp's converter is not set up: run `make setup`")
    path = tmp_path / "demo.gguf"
    gguf.convert(model_dir, path, model_name="demo", pre_tokenizer="gpt-2", weight_names=())
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    tokenizer = tokenizer_of(model_dir)
    assert model.metadata["tokenizer.chat_template"] == config["chat_template"]
    formatter = Jinja2ChatFormatter(
        template=model.metadata["tokenizer.chat_template"],
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
    )
    refused = {"answer of a tool"}  # the demo's template knows three roles
    for name in PROBES.keys() - refused:
        messages = list(PROBES[name].messages)
        expected = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        prompt = formatter(messages=messages).prompt
        assert model.tokenize(prompt.encode(), add_bos=False, special=True) == expected, name
    model.close()
