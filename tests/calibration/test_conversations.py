"""Rows become documents: with the model's own template, or one line about what is wrong."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.calibration.conversations import document_of
from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.core.errors import InputError
from tests.models import tiny_llama
from tests.support import ROOT

MESSAGES = [
    {"role": "system", "content": "Answer with few words."},
    {"role": "user", "content": "Who sells bread?"},
    {"role": "assistant", "content": "The baker."},
]
CONVERSATIONS = [
    {"from": "system", "value": "Answer with few words."},
    {"from": "human", "value": "Who sells bread?"},
    {"from": "gpt", "value": "The baker."},
]


@pytest.fixture
def tokenizer() -> Any:
    return tokenizer_of(ROOT / "demo" / "model")


def with_template(tokenizer: Any, template: str) -> Any:
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("row", [{"messages": MESSAGES}, {"conversations": CONVERSATIONS}])
def test_messages_are_rendered_by_the_models_template(tokenizer: Any, row: object) -> None:
    document = document_of(row, "here", tokenizer)
    assert document.text == tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    assert document.has_marks
    ids = tokenizer.encode(document.text, add_special_tokens=False)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert document.content == "Answer with few words.\nWho sells bread?\nThe baker."


def test_special_tokens_do_not_hide_what_a_text_says(tokenizer: Any) -> None:
    text = "<|user|>Who sells bread?<|eos|><|assistant|>The baker.<|eos|>"
    document = document_of({"text": text}, "here", tokenizer)
    assert (document.text, document.has_marks) == (text, False)
    assert document.content.split() == ["Who", "sells", "bread?", "The", "baker."]


def test_content_may_be_a_list_of_texts_and_messages_come_before_text(tokenizer: Any) -> None:
    parts = [{"type": "text", "text": "Who sells "}, {"type": "text", "text": "bread?"}]
    row = {"text": "rendered for another model", "messages": [{"role": "user", "content": parts}]}
    assert document_of(row, "here", tokenizer).content == "Who sells bread?"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("x", "here: found 'x'; expected messages, conversations or text"),
        ({"body": "x"}, "here: found the keys ['body']; expected messages"),
        ({"text": 3}, "here: text: found 3; expected text"),
        ({"text": "\ud800"}, "here: text: half of a surrogate pair"),
        ({"messages": []}, "here: messages = []: expected a list of turns"),
        ({"messages": ["x"]}, "here: messages, turn 1: found 'x'; expected an object with"),
        ({"messages": [{"role": "user"}]}, 'turn 1: "content": found None; expected text'),
        ({"conversations": MESSAGES}, "turn 1: found {'role': 'system'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "template fails on it: Roles must be"),
    ],
)
def test_a_row_that_cannot_be_used_is_one_line(tokenizer: Any, row: object, said: str) -> None:
    with pytest.raises(InputError, match=r"^here") as caught:
        document_of(row, "here", tokenizer)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].nothing.at_all }}",
        "{% for",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ 1 // 0 }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ],
)
def test_a_template_that_fails_or_reaches_out_is_one_line(tokenizer: Any, template: str) -> None:
    with pytest.raises(InputError, match="the model's chat template fails on it") as caught:
        document_of({"messages": MESSAGES}, "here", with_template(tokenizer, template))
    assert "\n" not in str(caught.value)


def test_messages_without_a_template_say_what_would_do(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tiny_llama(tmp_path / "model"))
    with pytest.raises(InputError, match="here: has messages, and the model has no chat template"):
        document_of({"messages": MESSAGES}, "here", tokenizer)
