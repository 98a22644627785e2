"""Models of several parts: the text part is quantized, every other part stays as it is."""

import json
import re
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.quantizers.quantizers_utils import should_convert_module

from benchmarks.engine import every_format
from pipeline.architectures.folds import split_layer_name
from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.empty_model import empty_model
from pipeline.checkpoint.reading import Checkpoint
from pipeline.checkpoint.unpacked_model import packed_modules, unpacked_model, unpacked_weights
from pipeline.core.workspace import Workspace
from pipeline.engines.in_llama_cpp import LlamaCppScorer
from pipeline.engines.in_transformers import TransformersScorer
from pipeline.engines.token_forest import Span
from pipeline.params.gguf_variants import GgufRounding
from pipeline.params.params import GgufParams, GgufType
from pipeline.params.reading import read_params
from pipeline.params.variants import PackedLayout
from pipeline.planning.model_source import examined_base
from pipeline.quantization.gguf_variant import write_gguf
from pipeline.quantization.packed_checkpoint import write_packed
from pipeline.records.base import read_base_manifest
from pipeline.records.intake import read_intake
from pipeline.stages import fetch
from tests.architecture_models import COMPOSITES, base_manifest, calibrated_model, tiny_model
from tests.models import MIT_TEXT, byte_bpe, write_json
from tests.readers.test_readers import IDS, read_files
from tests.support import ROOT

AWQ, _, _, GPTQ, _, *COMPRESSED = every_format()
RECIPES = {
    "awq": AWQ,
    "gptq": GPTQ.model_copy(update={"align_samples": 8}),
    "w4a16": COMPRESSED[0],
    "w8a8": next(recipe for recipe in COMPRESSED if recipe.layout is PackedLayout.INT),
}
PARTS = ("multi_modal_projector", "vision_tower")


def add_small_files(directory: Path) -> None:
    """The tokenizer, the license and the settings of the image processor."""
    byte_bpe(320).save(str(directory / "tokenizer.json"))
    write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"},
    )
    write_json(directory / "preprocessor_config.json", {"size": 28})
    (directory / "LICENSE").write_text(MIT_TEXT)
    (directory / "README.md").write_text("---\nlicense: mit\n---\n# A random model\n")


@pytest.fixture(scope="module", params=COMPOSITES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = calibrated_model(tmp_path_factory.mktemp(request.param), request.param)
    add_small_files(workspace.base_dir)
    return workspace


@pytest.fixture(scope="module")
def model_dirs(base: Workspace) -> dict[str, Path]:
    """A packed checkpoint of every recipe."""
    made = {}
    for name, recipe in RECIPES.items():
        made[name] = base.root / name / "model"
        made[name].mkdir(parents=True)
        write_packed(base.base_dir, base_manifest(base), recipe, Statistics(base), made[name])
    return made


def of_text_layers(names: tuple[str, ...]) -> set[str]:
    return {
        name.removesuffix(".weight")
        for name in names
        if split_layer_name(name) and "language_model" in name and name.endswith("proj.weight")
    }


def test_the_linears_of_the_text_part_alone_are_measured(base: Workspace) -> None:
    linears = Statistics(base).linears
    assert set(linears) == of_text_layers(Checkpoint(base.base_dir).names)
    assert len(linears) == 2 * 7


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_other_parts_are_kept_byte_by_byte(
    base: Workspace, model_dirs: dict[str, Path], name: str
) -> None:
    original, packed = Checkpoint(base.base_dir), Checkpoint(model_dirs[name])
    assert set(packed_modules(packed)) == of_text_layers(original.names)
    kept = [tensor for tensor in original.names if tensor.startswith(PARTS)]
    assert len(kept) > 10
    for tensor in kept:
        before, after = original.tensor(tensor), packed.tensor(tensor)
        assert before.dtype == after.dtype
        assert torch.equal(before, after)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_packed_model_computes_nearly_the_same(
    base: Workspace, model_dirs: dict[str, Path], name: str
) -> None:
    with torch.inference_mode():
        original = unpacked_model(base.base_dir)(input_ids=IDS).logits
        quantized = unpacked_model(model_dirs[name])(input_ids=IDS).logits
    change = float((quantized - original).norm() / original.norm())
    assert 0 < change < 0.25


def test_text_is_scored_without_images(base: Workspace) -> None:
    model = unpacked_model(base.base_dir)
    with torch.inference_mode():
        expected = model(input_ids=IDS).logits[0].numpy()
    scorer = TransformersScorer(model, label="base")
    (logits,) = scorer.logits([Span(ids=tuple(IDS[0].tolist()), start=0)])
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert scorer.vocab_size == 320


@pytest.mark.parametrize("name", RECIPES)
def test_libraries_skip_all_modules_that_are_not_packed(
    base: Workspace, model_dirs: dict[str, Path], name: str
) -> None:
    """By the rules of each format, with the names of transformers' model and those of the files."""
    config = json.loads((model_dirs[name] / "config.json").read_text())["quantization_config"]

    def is_skipped(module: str) -> bool:
        if name == "awq":
            return not should_convert_module(module, config["modules_to_not_convert"])
        if name == "gptq":
            rules = config["dynamic"]
            return any(re.match(rule.removeprefix("-:"), module) for rule in rules)
        return any(
            re.match(rule.removeprefix("re:"), module) if rule.startswith("re:") else rule == module
            for rule in config["ignore"]
        )

    model = empty_model(base.base_dir)
    modules = {
        module
        for module, kind in model.named_modules()
        if isinstance(kind, torch.nn.Linear) and module != "lm_head"
    }
    stored = {
        tensor.removesuffix(".weight")
        for tensor in Checkpoint(base.base_dir).names
        if len(Checkpoint(base.base_dir).shape(tensor)) > 1 and tensor.startswith(PARTS)
    }
    text = {module for module in modules if module.startswith("model.language_model.")}
    assert len(text) == 2 * 7
    assert not any(map(is_skipped, text | of_text_layers(Checkpoint(base.base_dir).names)))
    assert all(map(is_skipped, (modules - text) | stored))


@pytest.mark.slow
def test_other_programs_read_the_release(
    model_dirs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """transformers loads it as the class of the base; vLLM's functions unpack the same weights."""
    readers = {"transformers_reader": ["w4a16", "w8a8"], "vllm_reader": ["awq", "gptq"]}
    read = read_files(readers, model_dirs, tmp_path_factory.mktemp("read"))
    for name in readers["transformers_reader"]:
        with torch.inference_mode():
            ours = unpacked_model(model_dirs[name])(input_ids=IDS).logits
        difference = (read[name]["logits"] - ours).norm() / ours.norm()
        assert difference < (0.03 if name == "w8a8" else 0.002)
    for name in readers["vllm_reader"]:
        weights = dict(unpacked_weights(model_dirs[name]))
        assert len(read[name]) == 2 * 7
        for tensor, weight in read[name].items():
            torch.testing.assert_close(weight, weights[tensor], rtol=2**-10, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("scale_search", [False, True])
def test_a_gguf_file_has_the_text_part(base: Workspace, tmp_path: Path, scale_search: bool) -> None:
    recipe = GgufParams(
        format="gguf",
        type=GgufType("Q8_0"),
        scale_search=scale_search,
        imatrix=True,
        rounding=GgufRounding.GPTQ,
        quantized_inputs=False,
        align_samples=0,
    )
    model_dir = tmp_path / "model"
    model_dir.mkdir()
    coverage, _ = write_gguf(
        base.base_dir,
        base_manifest(base),
        recipe,
        Statistics(base),
        model_dir,
        model_name="tiny",
        metadata={},
        pre_tokenizer="gpt-2",
    )
    assert sum(row.scheme == "Q8_0" and row.name.startswith("blk.") for row in coverage) == 2 * 7
    assert not any(row.name.startswith(("v.", "mm.")) for row in coverage)
    ids = tuple(IDS[0].tolist())
    with closing(LlamaCppScorer(model_dir / "model-Q8_0.gguf", label="tiny")) as scorer:
        (logits,) = scorer.logits([Span(ids=ids, start=0)])
    with torch.inference_mode():
        ours = unpacked_model(base.base_dir)(input_ids=IDS).logits[0]
    read = torch.from_numpy(logits)
    assert torch.nn.functional.cosine_similarity(read, ours).mean() > 0.995


@pytest.mark.parametrize("name", COMPOSITES)
def test_plan_and_fetch_find_the_text_part(tmp_path: Path, name: str) -> None:
    add_small_files(tiny_model(tmp_path / "model", name))
    config: dict[str, Any] = json.loads((tmp_path / "model" / "config.json").read_text())
    for key in ("num_key_value_heads", "max_position_embeddings"):
        assert config["text_config"].pop(key)
    defaults = type(COMPOSITES[name].get_text_config())()
    config["text_config"]["num_key_value_heads"] = 2
    config["auto_map"] = {"AutoConfig": "code.Config"}
    write_json(tmp_path / "model" / "config.json", config)
    write_json(tmp_path / "model" / "preprocessor_config.json", {"auto_map": {"x": "y.Z"}})
    workspace = Workspace(tmp_path)
    shutil.copytree(ROOT / "demo" / "data", tmp_path / "demo" / "data")
    params = read_params(ROOT / "params.yaml")
    params = params.model_copy(
        update={"model": params.model.model_copy(update={"source": "model"})}
    )
    with examined_base(workspace, params.model) as examined:
        planned = examined.source
    fetch.run(workspace, params)
    manifest = read_base_manifest(workspace)
    part = manifest.text_part
    assert part is not None
    assert part == planned.text_part
    assert part.other_parts == PARTS
    assert manifest.architecture == type(COMPOSITES[name]).__name__.replace(
        "Config", "ForConditionalGeneration"
    )
    assert len(planned.shape.layers) == 2
    assert planned.shape.hidden_size == 64
    total = planned.shape.num_weights + planned.shape.num_kept_weights
    checkpoint = Checkpoint(workspace.base_dir)
    assert total == sum(checkpoint.tensor(tensor).numel() for tensor in checkpoint.names)
    assert set(planned.tensors) == {
        tensor for tensor in checkpoint.names if not tensor.startswith(PARTS)
    }
    found = [finding.found for finding in read_intake(workspace).findings]
    assert "text_config leaves out max_position_embeddings" in found
    stated = json.loads((workspace.base_dir / "config.json").read_text())["text_config"]
    assert stated["max_position_embeddings"] == defaults.max_position_embeddings
    assert json.loads((workspace.base_dir / "preprocessor_config.json").read_text()) == {}
    kind = type(
        AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(workspace.base_dir))
    )
    assert type(unpacked_model(workspace.base_dir)) is kind
