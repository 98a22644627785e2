"""The Modelfile writer against an independent reader of the grammar."""

import pytest

from pipeline.core.errors import InputError
from pipeline.ollama.chat_families import FAMILIES, GoTemplate
from pipeline.ollama.modelfile import ModelfileFacts, modelfile
from tests.modelfile_reader import read_modelfile

LICENSE = 'MIT License\n\nCopyright (c) "Somebody"\n# not a comment\n  indented ""\n'


def facts(**changes: object) -> ModelfileFacts:
    values: dict[str, object] = {
        "stop": ("</s>",),
        "sampling": {},
        "context_tokens": 1024,
        "go_template": GoTemplate(None, None, "of no family"),
    }
    return ModelfileFacts(**{**values, **changes})  # type: ignore[arg-type]


def test_what_is_written_is_what_a_reader_reads() -> None:
    text = modelfile(
        "model-Q4_K_M.gguf",
        facts(
            stop=("</s>", "<|im_end|>", '"', '""x"', "a b ", "<｜end▁of▁sentence｜>"),
            sampling={"temperature": 0.6, "top_k": 40.0, "repetition_penalty": 1.05},
        ),
        license_text=LICENSE,
    )
    assert read_modelfile(text) == [
        ("from", "./model-Q4_K_M.gguf"),
        ("requires", "0.30.0"),
        ("parameter num_ctx", 1024),
        ("parameter temperature", 0.6),
        ("parameter top_k", 40),
        ("parameter repeat_penalty", 1.05),
        ("parameter stop", "</s>"),
        ("parameter stop", "<|im_end|>"),
        ("parameter stop", '"'),
        ("parameter stop", '""x"'),
        ("parameter stop", "a b "),
        ("parameter stop", "<｜end▁of▁sentence｜>"),
        ("license", LICENSE.strip()),
    ]


def test_a_model_without_a_chat_template_runs_on_any_version() -> None:
    commands = dict(read_modelfile(modelfile("m.gguf", facts(go_template=None),
                                             license_text="x")))  # fmt: skip
    assert "requires" not in commands
    assert "template" not in commands


def test_a_proven_go_template_runs_on_any_version() -> None:
    for family in FAMILIES:
        go = GoTemplate(family.name, family.go_template(), "proved equal")
        commands = dict(
            read_modelfile(modelfile("m.gguf", facts(go_template=go), license_text="x"))
        )
        assert commands["template"] == family.go_template()
        assert "requires" not in commands


def test_why_there_is_no_template_is_said() -> None:
    text = modelfile("m.gguf", facts(), license_text="x")
    assert "# no TEMPLATE: of no family\nREQUIRES 0.30.0\n" in text


def test_a_license_keeps_its_words_apart() -> None:
    text = modelfile("m.gguf", facts(), license_text="of\N{NO-BREAK SPACE}use\x0c\u200bhere")
    assert dict(read_modelfile(text))["license"] == "of use here"


def test_a_long_context_is_not_reserved_at_once() -> None:
    text = modelfile("m.gguf", facts(context_tokens=131072), license_text="x")
    assert dict(read_modelfile(text))["parameter num_ctx"] == 8192


@pytest.mark.parametrize(
    ("changes", "license_text", "file", "expected"),
    [
        ({}, 'text with """ in it', "m.gguf", 'the license text contains """'),
        ({"stop": ('a"""b',)}, "x", "m.gguf", 'the stop token contains """'),
        ({"stop": ("\n\n",)}, "x", "m.gguf", "the stop token '\\\\n\\\\n' cannot be written"),
        ({"stop": ("a\u200bb",)}, "x", "m.gguf", "cannot be written"),
        ({}, "x", 'm".gguf', "rename the file"),
        ({}, "x", "m\n.gguf", "rename the file"),
    ],
)
def test_what_the_grammar_cannot_say_is_refused(
    changes: dict[str, object], license_text: str, file: str, expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        modelfile(file, facts(**changes), license_text=license_text)
