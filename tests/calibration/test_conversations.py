"""Rows become documents: with the model's own template, or one line about what is wrong."""

from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest

from pipeline.calibration.conversations import UnusableRowError, document_of
from pipeline.checkpoint.chat_rendering import TEMPLATE_DATE, template_date
from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.core.documents import MalformedRow
from pipeline.core.errors import InputError
from pipeline.evaluation.lm_eval_model import chat_text
from pipeline.records.statistics import SkipReason
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


@pytest.mark.parametrize(
    "row",
    [
        {"messages": MESSAGES},
        {"conversations": CONVERSATIONS},
        {"conversations": MESSAGES},
        {"messages": CONVERSATIONS},
        {"conversations": [{**turn, "role": None} for turn in CONVERSATIONS]},  # as parquet has it
        {"messages": [{**turn, "tool_calls": None, "name": None} for turn in MESSAGES]},
    ],
)
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


CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
TURN = {"role": "user", "content": "x"}
UNUSABLE = [
    (SkipReason.MALFORMED, MalformedRow("not valid JSON"), "here: not valid JSON"),
    (SkipReason.NO_DOCUMENT, "x", "here: found 'x'; expected messages, conversations or text"),
    (SkipReason.NO_DOCUMENT, {"body": "x"}, "here: found the keys ['body']; expected messages"),
    (SkipReason.NO_DOCUMENT, {"text": None}, "here: found the keys ['text']; expected messages"),
    (SkipReason.NO_DOCUMENT, None, "here: found None"),
    (SkipReason.NO_TEXT, {"text": 3}, "here: text: found 3; expected text"),
    (SkipReason.NO_TEXT, {"text": "\ud800"}, "here: text: half of a surrogate pair"),
    (SkipReason.NO_TURNS, {"messages": []}, "here: messages = []: expected a list of turns"),
    (SkipReason.NO_TURNS, {"conversations": "[]"}, "expected a list of turns"),
    (SkipReason.NO_ROLE, {"messages": ["x"]}, "here: messages, turn 1: found 'x'; expected an obj"),
    (SkipReason.NO_ROLE, {"messages": [{"content": "x"}]}, 'with "role" or "from"'),
    (SkipReason.NO_TEXT, {"messages": [{"role": "user"}]}, 'turn 1: "content": found None; expec'),
    (
        SkipReason.NO_TEXT,
        {"messages": [TURN, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
        'turn 2: "content": found None; expected text',
    ),
    (
        SkipReason.NO_TEXT,
        {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
        "found [{'type': 'image'",
    ),
    (
        SkipReason.TEMPLATE,
        {"messages": [{"role": "tool", "content": "x"}]},
        "fails on it: Role",
    ),
]


@pytest.mark.parametrize(("reason", "row", "said"), UNUSABLE)
def test_a_row_that_cannot_be_used_is_one_line_with_its_reason(
    tokenizer: Any, reason: SkipReason, row: object, said: str
) -> None:
    with pytest.raises(UnusableRowError, match=r"^here") as caught:
        document_of(row, "here", tokenizer)
    assert caught.value.reason is reason
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}"
)


@pytest.mark.parametrize("roles", [["user", "user"], ["system", "user"], ["assistant", "user"]])
def test_turns_that_the_template_refuses_are_a_reason(tokenizer: Any, roles: list[str]) -> None:
    messages = [{"role": role, "content": "x"} for role in roles]
    with pytest.raises(UnusableRowError, match="fails on it: Roles must alternate") as caught:
        document_of({"messages": messages}, "here", with_template(tokenizer, ALTERNATING))
    assert caught.value.reason is SkipReason.TEMPLATE


DATED = [
    "{{ strftime_now('%d %B %Y %H:%M') }}",
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}{%- endif %}{{ date_string }}",
    "{% macro today() %}{{ strftime_now('%Y-%m-%d') }}{% endmacro %}{{ today() }}",
]


@pytest.mark.parametrize("template", DATED)
def test_a_template_that_prints_the_date_sees_the_same_one_on_any_day(
    tokenizer: Any, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Tomorrow":
            return cls(2031, 5, 17, 11, 45)

    dated = with_template(tokenizer, template)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Tomorrow)
    assert "2031" in dated.apply_chat_template(MESSAGES, tokenize=False)
    text = document_of({"messages": MESSAGES}, "here", dated).text
    assert "2026" in text
    assert chat_text(dated, MESSAGES) == text
    assert template_date(dated) == TEMPLATE_DATE
    assert template_date(with_template(tokenizer, ALTERNATING)) is None


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
