"""A tokenizer of no class of its own is read at once, and is the one that AutoTokenizer gives."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.core.errors import InputError
from tests.support import ROOT

DEMO = ROOT / "demo" / "model"
TEXTS = ("The baker sells bread.", "  dos  espacios\n\n", "Ünïcödé 12345", "<|bos|>x<|eos|>", "🥖")
CONVERSATION = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]


def test_it_is_the_tokenizer_that_transformers_chooses() -> None:
    own, other = tokenizer_of(DEMO), AutoTokenizer.from_pretrained(DEMO)
    assert type(own) is type(other)
    for text in TEXTS:
        assert own.encode(text) == other.encode(text)
        assert own.encode(text, add_special_tokens=False) == other.encode(
            text, add_special_tokens=False
        )
        assert own.decode(own.encode(text)) == other.decode(other.encode(text))
    assert own.apply_chat_template(CONVERSATION, tokenize=False) == other.apply_chat_template(
        CONVERSATION, tokenize=False
    )
    assert own.special_tokens_map == other.special_tokens_map
    assert own.all_special_tokens == other.all_special_tokens


def test_without_a_class_transformers_chooses(tmp_path: Path) -> None:
    for path in DEMO.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config_path = tmp_path / "tokenizer_config.json"
    stated = json.loads(config_path.read_text())
    del stated["tokenizer_class"]
    config_path.write_text(json.dumps(stated))
    own, other = tokenizer_of(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert type(own) is type(other)
    assert [own.encode(text) for text in TEXTS] == [other.encode(text) for text in TEXTS]


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    for path in DEMO.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON") as caught:
        tokenizer_of(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_tokenizer_loads_no_models() -> None:
    program = (
        "import sys; from pathlib import Path; from pipeline.checkpoint.tokenizer import *; "
        f"tokenizer_of(Path({str(DEMO)!r})).encode('x'); "
        "print({'torch', 'sklearn', 'transformers.modeling_utils'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
