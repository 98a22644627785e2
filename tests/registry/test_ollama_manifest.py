"""Ollama's second manifest: what the Modelfile says, read by us and by a reader of its own."""

import json
from pathlib import Path

import pytest

from pipeline.core.errors import InputError
from pipeline.registry.ollama_manifest import ollama_model, ollama_tag, read_modelfile
from tests.modelfile_reader import read_modelfile as read_independently
from tests.registry_server import package_manifest

FENCE = '"""'
LICENSE = 'The "License"\n\nFROM now on\n# PARAMETER seed 1'
MODELFILE = f"""FROM ./model.gguf
# no TEMPLATE: none was proved
REQUIRES 0.30.0
PARAMETER num_ctx 2048
PARAMETER temperature 0.7

PARAMETER top_k 40
PARAMETER stop "<|end|>"
PARAMETER stop {FENCE}say "stop"{FENCE}
PARAMETER stop x
LICENSE {FENCE}{LICENSE}{FENCE}
"""


def package(tmp_path: Path, quantization: str = "Q4_K_M"):
    (tmp_path / "model.gguf").write_bytes(b"gguf")
    made = package_manifest(tmp_path, "gguf-q4-k-m")
    return made.model_copy(update={"quantization": quantization})


def test_both_readers_agree_on_what_is_written() -> None:
    text = MODELFILE.replace("# no TEMPLATE: none was proved\n", "")
    ours = [
        (f"parameter {it.name}" if it.name else it.command.lower(), it.value)
        for it in read_modelfile(text)
    ]
    theirs = [(name, value) for name, value in read_independently(text)]
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    for (name, mine), (_, other) in zip(ours, theirs, strict=True):
        assert type(other)(mine) == other, name  # type: ignore[call-arg]


def test_layers_say_what_the_modelfile_says(tmp_path: Path) -> None:
    text = MODELFILE + 'SYSTEM """You help."""\nTEMPLATE """{{ .Prompt }}"""\n'
    model = ollama_model(package(tmp_path), text)
    texts = {kind.rsplit(".", 1)[1]: data for data, kind in model.texts}
    assert texts["license"].decode() == LICENSE
    assert texts["system"] == b"You help."
    assert texts["template"] == b"{{ .Prompt }}"
    assert json.loads(texts["params"]) == {
        "num_ctx": 2048,
        "temperature": 0.7,
        "top_k": 40,
        "stop": ["<|end|>", 'say "stop"', "x"],
    }
    manifest = json.loads(model.manifest)
    assert manifest["layers"][0]["mediaType"] == "application/vnd.ollama.image.model"
    assert len(manifest["layers"]) == 5


@pytest.mark.parametrize(
    ("quantization", "tag"),
    [("Q4_K_M", "1.2.3-q4_K_M"), ("Q8_0", "1.2.3-q8_0"), ("IQ4_XS", "1.2.3-iq4_XS")],
)
def test_tags_are_those_of_ollamas_library(tmp_path: Path, quantization: str, tag: str) -> None:
    assert ollama_tag(package(tmp_path, quantization)) == tag


@pytest.mark.parametrize(
    "text",
    ["hello", "FROM\n", 'LICENSE """open', "PARAMETER evil 1", "PARAMETER seed one",
     "PARAMETER temperature hot", "from ./x"],
)  # fmt: skip
def test_another_modelfile_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="Modelfile: "):
        ollama_model(package(tmp_path), text)
