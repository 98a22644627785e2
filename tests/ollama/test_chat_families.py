"""A Go template and its family render the same text, and another template is refused."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from pipeline.ollama.chat_families import FAMILIES, PROBES, ChatFamily, equivalent_go_template
from tests.support import ROOT, require_program

TURNS = PROBES["system and turns"].messages


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that renders with Go's own text/template."""
    directory = tmp_path_factory.mktemp("go")
    program = directory / "render"
    subprocess.run(
        [require_program("go"), "build", "-o", program, ROOT / "tests/go_render/main.go"],
        check=True,
        env={**os.environ, "GOCACHE": str(directory / "cache"), "GO111MODULE": "off"},
    )
    return program


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_go_renders_what_the_family_does(renderer: Path, family: ChatFamily) -> None:
    requests = [
        {"template": family.go_template(), "messages": conversation.messages}
        for conversation in PROBES.values()
    ]
    done = subprocess.run(
        [renderer], input=json.dumps(requests), capture_output=True, text=True, check=True
    )
    expected = [family.render(conversation.messages) for conversation in PROBES.values()]
    assert json.loads(done.stdout) == expected


def test_families_differ() -> None:
    assert len({family.render(TURNS) for family in FAMILIES}) == len(FAMILIES)


def test_chatml_is_what_its_inventors_wrote() -> None:
    family = next(it for it in FAMILIES if it.name == "ChatML")
    assert family.render(TURNS) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n"
        "<|im_start|>assistant\nAna.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_gemma_has_no_turn_for_the_system() -> None:
    family = next(it for it in FAMILIES if it.name == "Gemma")
    assert family.render(TURNS) == (
        "<start_of_turn>user\nBe brief.\n\nWho?<end_of_turn>\n"
        "<start_of_turn>model\nAna.<end_of_turn>\n<start_of_turn>user\nWhere?<end_of_turn>\n"
        "<start_of_turn>model\n"
    )


def rendered(family: ChatFamily, *, bos: str = "") -> dict[str, str | None]:
    return {name: bos + family.render(probe.messages) for name, probe in PROBES.items()}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_go_template_begins_with_what_the_engine_does_not_add(family: ChatFamily) -> None:
    template = family.go_template()
    assert equivalent_go_template(rendered(family), bos="<s>", adds_bos=True).text == template
    with_bos = rendered(family, bos="<s>")
    assert equivalent_go_template(with_bos, bos="<s>", adds_bos=True).text == template
    assert equivalent_go_template(with_bos, bos="<s>", adds_bos=False).text == "<s>" + template


def test_one_difference_is_too_much_and_is_named() -> None:
    texts = rendered(FAMILIES[0]) | {"tools": "# Tools\n"}
    go = equivalent_go_template(texts, bos="", adds_bos=False)
    assert go.text is None
    assert go.reason == "the chat template is not quite ChatML: tools"


def test_a_refused_conversation_proves_nothing() -> None:
    texts = rendered(FAMILIES[0]) | {"answer of a tool": None}
    assert equivalent_go_template(texts, bos="", adds_bos=False).family == "ChatML"
    refuses_all = dict.fromkeys(PROBES, None)
    assert equivalent_go_template(refuses_all, bos="", adds_bos=False).text is None


def test_another_format_is_of_no_family() -> None:
    go = equivalent_go_template(dict.fromkeys(PROBES, "always the same"), bos="", adds_bos=False)
    assert go.reason == "the chat template is of no family with a tested Go template"
