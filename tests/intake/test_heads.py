"""Output heads beside an embedding: every engine and every variant has the same one."""

import json
import re
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma2Config

from pipeline.checkpoint.reading import Checkpoint
from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.environments import SERVE_ENVIRONMENT
from pipeline.core.errors import InputError
from pipeline.core.files import directory_records
from pipeline.core.workspace import Workspace
from pipeline.engines.in_llama_cpp import LlamaCppScorer
from pipeline.engines.in_transformers import TransformersScorer
from pipeline.engines.token_forest import Span
from pipeline.gguf import files as gguf
from pipeline.gguf.files import require_convertible
from pipeline.intake.heads import EMBEDDING_IS_HEAD
from pipeline.intake.weights import account_for_tensors
from pipeline.planning.model_source import examined_base
from pipeline.records.base import read_base_manifest
from pipeline.records.intake import read_intake
from pipeline.stages import fetch, quantize
from tests.architecture_models import SHAPE
from tests.intake.test_examination import edit, shapes
from tests.models import tiny_llama
from tests.stages.test_quantize import calibrated, packed, params_for
from tests.stages.test_quantize import gguf as gguf_recipe
from tests.support import missing

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
WEIGHTS = "model.safetensors"
IDS = tuple(range(5, 37))
PARAMS = params_for({"gptq": packed("gptq", num_bits=8), "gguf-q8-0": gguf_recipe("Q8_0")})

Head = Literal["copy", "other", "none"]


def tiny(path: Path, *, tied: bool, head: Head) -> Path:
    """A model whose config.json says `tied`, whatever `head` its files hold."""
    model = tiny_llama(path, hidden=128, tie_embeddings=True)
    edit(model / "config.json", tie_word_embeddings=tied)
    tensors = load_file(model / WEIGHTS)
    if head != "none":
        rows = tensors[EMBEDDING]
        tensors[HEAD] = (rows if head == "copy" else rows.flip(0)).contiguous().clone()
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    return model


def logits_by_transformers(model: Path) -> np.ndarray:
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True)
    (logits,) = TransformersScorer(loaded, label="base").logits([Span(IDS, start=0)])
    return logits


@pytest.mark.slow
@pytest.mark.parametrize("head", ["copy", "other"])
def test_base_and_variants_have_the_head_of_the_files(tmp_path: Path, head: Head) -> None:
    source = tiny(tmp_path / "model", tied=True, head=head)
    expected = logits_by_transformers(source)
    workspace = calibrated(tmp_path, PARAMS)
    np.testing.assert_array_equal(logits_by_transformers(workspace.base_dir), expected)
    for name in PARAMS.variants:
        quantize.run(workspace, PARAMS, name)
    packed_dir = workspace.model_dir("gptq")
    (gguf_path,) = workspace.model_dir("gguf-q8-0").glob("*.gguf")
    assert (HEAD in Checkpoint(packed_dir).names) is (head == "other")
    assert ("output.weight" in {tensor.name for tensor in gguf.read_tensors(gguf_path)}) is (
        head == "other"
    )
    scale = np.abs(expected).max()
    with closing(LlamaCppScorer(gguf_path, label="gguf")) as llama_cpp:
        for scorer in (TransformersScorer(unpacked_model(packed_dir), label="gptq"), llama_cpp):
            (found,) = scorer.logits([Span(IDS, start=0)])
            assert np.abs(found - expected).mean() < 0.02 * scale


@pytest.mark.slow
def test_config_json_is_corrected_where_the_head_is_another(tmp_path: Path) -> None:
    source = tiny(tmp_path / "model", tied=True, head="other")
    workspace = Workspace(tmp_path)
    with examined_base(workspace, PARAMS.model) as planned:
        assert [finding.found for finding in planned.findings] == [
            f"{HEAD} is there, though tie_word_embeddings is true"
        ]
    before = directory_records(source)
    calibrated(tmp_path, PARAMS)
    config = json.loads((workspace.base_dir / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    intake = read_intake(workspace)
    (finding,) = intake.findings
    assert finding.found == (
        f"tie_word_embeddings is true, though {HEAD} has other values than {EMBEDDING}"
    )
    assert intake.files_of_source(directory_records(workspace.base_dir)) == before
    written = workspace.base_manifest_path.stat().st_mtime_ns
    fetch.run(workspace, PARAMS)
    assert workspace.base_manifest_path.stat().st_mtime_ns == written


def test_a_copy_of_the_embedding_is_named(tmp_path: Path) -> None:
    tiny(tmp_path / "model", tied=True, head="copy")
    workspace = calibrated(tmp_path, PARAMS)
    (finding,) = read_intake(workspace).findings
    assert finding.found == f"{HEAD} is a copy of {EMBEDDING}"
    assert read_base_manifest(workspace).copied_tensors == (HEAD,)


def test_a_head_that_nobody_stored_is_not_made_up(tmp_path: Path) -> None:
    model = tiny(tmp_path / "model", tied=False, head="none")
    with pytest.raises(
        InputError, match=r"^lm_head.weight: no tensor .*tie_word_embeddings = true$"
    ):
        account_for_tensors(model, shapes(model))


@pytest.mark.parametrize("tied", [True, False])
def test_what_config_json_says_rightly_is_no_finding(tmp_path: Path, tied: bool) -> None:
    model = tiny(tmp_path / "model", tied=tied, head="none" if tied else "other")
    accounting = account_for_tensors(model, shapes(model))
    assert (accounting.tied, accounting.findings) == ((), ())


def test_an_engine_without_a_head_of_its_own_is_not_given_one(tmp_path: Path) -> None:
    config = Gemma2Config(**SHAPE, head_dim=16, architectures=["Gemma2ForCausalLM"])
    config.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(config)
    tensors = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert len(account_for_tensors(tmp_path, tensors).tied) == 1
    edit(tmp_path / "config.json", tie_word_embeddings=False)
    with pytest.raises(InputError, match=r"^lm_head.weight: the model has a head of its own, but"):
        account_for_tensors(tmp_path, tensors)


@pytest.mark.slow
def test_a_tensor_that_the_converter_leaves_out_is_named(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    edit(model / "config.json", architectures=["GemmaForCausalLM"], model_type="gemma")
    with pytest.raises(InputError, match=f"it leaves out {HEAD}, which the model reads"):
        require_convertible(model, pre_tokenizer="gpt-2", tensor_names=(EMBEDDING, HEAD))


def test_the_list_of_models_without_a_head_is_that_of_vllm() -> None:
    """Read vLLM's source: importing it takes seconds."""
    models = next(SERVE_ENVIRONMENT.glob("lib/*/site-packages/vllm/model_executor/models"), None)
    if models is None:
        missing("vLLM is not set up: run `make setup`")
    found = {
        name
        for path in models.glob("*.py")
        if "self.logits_processor(self.model.embed_tokens, " in (source := path.read_text())
        for name in re.findall(r"^class (\w+ForCausalLM)\(", source, re.MULTILINE)
    }
    # Cohere 2 is one more name of Cohere's class.
    assert found | {"Cohere2ForCausalLM"} == EMBEDDING_IS_HEAD
