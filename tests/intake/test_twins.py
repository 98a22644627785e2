"""The examination of twins of real repositories: headers of the real sizes, values of tiny ones."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pipeline.core.errors import InputError
from pipeline.core.workspace import PARAMS_FILE, Workspace
from pipeline.ollama.modelfile_facts import read_modelfile_facts
from pipeline.params.params import Params
from pipeline.params.reading import read_params
from pipeline.planning.model_source import examined_base
from pipeline.planning.source import Source
from pipeline.records.base import read_base_manifest
from pipeline.records.intake import read_intake
from pipeline.stages import fetch
from tests.hub_server import COMMIT, Hub, serve_hub
from tests.intake.repository_files import Sizes
from tests.intake.twins import (
    LLAMA_70B,
    LLAMA_TINY,
    PHI_MINI,
    PHI_TINY,
    QWEN_TINY,
    llama_3_1,
    phi_4_mini,
    qwen_3_5,
)
from tests.support import ROOT

PICKLES = (
    "original/consolidated.00.pth: {} with pickled weights, which can run code when they are read: "
    "not taken: the weights in safetensors count"
)
SAMPLING = (
    "generation_config.json: temperature = 0.6, top_p = 0.9, which engines apply to requests that "
    "state no other values: goes into releases as it is; evaluation and benchmark state neutral "
    "values"
)


def params_for(source: str | Path) -> Params:
    params = read_params(ROOT / PARAMS_FILE)
    return params.model_copy(
        update={
            "model": params.model.model_copy(update={"source": str(source)}),
            # As the Llama license asks of what is passed on.
            "release": params.release.model_copy(update={"name": "Llama-tiny"}),
        }
    )


def examined(root: Path, source: str | Path) -> tuple[Source, list[str]]:
    """Examine a checkpoint as plan does; return its shapes, and the findings as text."""
    with examined_base(Workspace(root), params_for(source).model) as base:
        return base.source, [str(finding) for finding in base.findings]


def few_tokens(sizes: Sizes) -> Sizes:
    """A tokenizer of 512 tokens beside weights of the real size: it is made and read at once."""
    return replace(sizes, text_tokens=512)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["directory", "hub"])
def test_a_llama_of_70b_is_examined_by_its_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    directory = llama_3_1(tmp_path / "model", few_tokens(LLAMA_70B))
    if place == "directory":
        source, findings = examined(tmp_path, directory)
    else:
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        with serve_hub(Hub({"meta-llama/Llama-3.1-70B-Instruct": directory})) as hub:
            monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
            name = f"hf:meta-llama/Llama-3.1-70B-Instruct@{COMMIT}"
            source, findings = examined(tmp_path, name)
        assert not any(name.endswith(".pth") for name in hub.downloads())
    assert findings == [PICKLES.format("8 files"), SAMPLING]
    assert (len(source.tensors), source.shape.num_weights) == (723, 70_553_706_496)
    assert (len(source.shape.layers), source.shape.hidden_size) == (80, 8192)


def test_the_code_of_a_phi_is_neither_needed_nor_taken(tmp_path: Path) -> None:
    directory = phi_4_mini(tmp_path / "model", few_tokens(PHI_MINI))
    source, findings = examined(tmp_path, directory)
    assert source.architecture == "Phi3ForCausalLM"
    assert source.shape.num_weights == 3_836_021_760
    code = "configuration_phi3.py: 3 files with Python code: not taken: code of a repository is "
    assert findings[0] == code + "never run"
    assert findings[1].startswith("config.json: auto_map names Python code of the repository: ")
    assert len(findings) == 2


def test_a_qwen_of_two_kinds_of_attention_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^config\.json: the text part of Qwen3_5Config is [^\n]*; use a[^\n]*$"
    ):
        examined(tmp_path, qwen_3_5(tmp_path / "model", QWEN_TINY))


@pytest.mark.parametrize(
    ("make", "sizes", "license_id", "stop", "left"),
    [
        (llama_3_1, LLAMA_TINY, "llama3.1", ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"], 2),
        (phi_4_mini, PHI_TINY, "mit", ["<|end|>", "<|endoftext|>"], 2),
    ],
)
def test_a_tiny_twin_is_fetched_and_every_tool_can_read_it(
    tmp_path: Path,
    make: Callable[[Path, Sizes], Path],
    sizes: Sizes,
    license_id: str,
    stop: list[str],
    left: int,
) -> None:
    directory = make(tmp_path / "model", sizes)
    workspace = Workspace(tmp_path)
    fetch.run(workspace, params_for(directory))
    manifest = read_base_manifest(workspace)
    assert manifest.applied_license.id == license_id
    assert len(read_intake(workspace).findings) == left
    names = {path.relative_to(workspace.base_dir).as_posix() for path in files_of(workspace)}
    assert names == {file.path for file in manifest.files}
    assert not any(name.endswith((".py", ".pth")) or "/" in name for name in names)
    assert list(read_modelfile_facts(workspace.base_dir).stop) == stop
    ids = AutoTokenizer.from_pretrained(workspace.base_dir).convert_tokens_to_ids(stop)
    generation = json.loads((workspace.base_dir / "generation_config.json").read_text())
    assert generation["eos_token_id"] == ids


def files_of(workspace: Workspace) -> list[Path]:
    return [path for path in workspace.base_dir.rglob("*") if path.is_file()]
