"""llama.cpp makes every type of file from a tiny model and reads it; its fallbacks are named."""

import os
from contextlib import closing
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.architectures.shapes import model_shape
from pipeline.checkpoint.reading import Checkpoint
from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.errors import FailureError
from pipeline.engines.in_llama_cpp import LlamaCppScorer
from pipeline.engines.token_forest import Span
from pipeline.gguf import files as gguf
from pipeline.params.gguf_variants import GgufRounding
from pipeline.params.params import GgufParams, GgufType
from pipeline.planning.stage_needs import variant_bytes
from pipeline.quantization.coverage import gguf_coverage
from pipeline.stages import quantize
from tests.models import tiny_llama
from tests.stages.test_quantize import calibrated, params_for, record_of
from tests.stages.test_quantize import gguf as gguf_recipe

IDS = tuple(range(5, 37))


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "base"
    return tiny_llama(path, hidden=256, intermediate=256, layers=1)


@pytest.fixture(scope="module")
def full(base_dir: Path) -> tuple[Path, dict[str, str]]:
    """The F16 file, and the GGUF names of the linears."""
    path = base_dir.parent / "full.gguf"
    linears = tuple(it for it in Checkpoint(base_dir).names if it.endswith("_proj.weight"))
    names = gguf.convert(
        base_dir, path, model_name="tiny", pre_tokenizer="gpt-2", weight_names=linears
    )
    return path, names


@pytest.mark.slow
@pytest.mark.parametrize("kind", GgufType)
def test_llama_cpp_makes_and_reads_every_type(
    tmp_path: Path, base_dir: Path, full: tuple[Path, dict[str, str]], kind: GgufType
) -> None:
    """With an imatrix where the parameters demand one, and without one where they do not."""
    full_path, names = full
    shapes = {name: Checkpoint(base_dir).shape(name) for name in names}
    importance = {
        gguf_name: np.ones(shapes[name][1], dtype=np.float32)
        for name, gguf_name in names.items()
        if kind.needs_imatrix
    }
    path = tmp_path / f"{kind}.gguf"
    gguf.quantize(full_path, path, kind, importance)
    rows = [
        gguf_coverage(
            tensor.name,
            shape=tensor.shape,
            stored_type=tensor.type,
            tensor_bits=tensor.bits_per_weight,
            relative_error=None,
            error_ratio=None,
            recipe=GgufParams(
                format="gguf",
                type=kind,
                scale_search=False,
                imatrix=True,
                rounding=GgufRounding.LLAMA_CPP,
                quantized_inputs=False,
                align_samples=0,
            ),
        )
        for tensor in gguf.read_tensors(path)
    ]
    assert {row.reason for row in rows} == {None, "kept: a vector"}
    assert path.stat().st_size < 0.6 * full_path.stat().st_size
    with closing(LlamaCppScorer(path, label=str(kind))) as scorer:
        (rows_read,) = scorer.logits([Span(ids=IDS, start=0)])
    read = torch.from_numpy(rows_read)
    assert read.isfinite().all()
    with torch.inference_mode():
        original = unpacked_model(base_dir)(input_ids=torch.tensor([IDS])).logits[0]
    likeness = torch.nn.functional.cosine_similarity(read, original).mean()
    assert likeness > (0.8 if kind.startswith(("IQ1", "IQ2", "Q2")) else 0.95)


@pytest.mark.slow
def test_the_plan_knows_the_size_of_files_whose_rows_no_block_divides(tmp_path: Path) -> None:
    base_dir = tiny_llama(tmp_path / "base", hidden=192, intermediate=512, layers=2)
    full_path = tmp_path / "full.gguf"
    gguf.convert(base_dir, full_path, model_name="m", pre_tokenizer="gpt-2", weight_names=())
    checkpoint = Checkpoint(base_dir)
    shape = model_shape({name: checkpoint.shape(name) for name in checkpoint.names})
    for kind in (GgufType.Q6_K, GgufType.Q5_K_M, GgufType.Q4_K_M, GgufType.Q3_K_M, GgufType.Q2_K):
        path = tmp_path / f"{kind}.gguf"
        gguf.quantize(full_path, path, kind, {})
        weights = sum(
            prod(tensor.shape) * tensor.bits_per_weight / 8 for tensor in gguf.read_tensors(path)
        )
        recipe = GgufParams(
            format="gguf",
            type=kind,
            scale_search=False,
            imatrix=False,
            rounding=GgufRounding.LLAMA_CPP,
            quantized_inputs=False,
            align_samples=0,
        )
        assert variant_bytes(shape, recipe) == pytest.approx(weights, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [GgufType.Q8_0, GgufType.Q4_K_M, GgufType.IQ4_XS, GgufType.Q2_K])
def test_all_cores_are_used_and_their_number_changes_no_byte(
    tmp_path: Path,
    full: tuple[Path, dict[str, str]],
    kind: GgufType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[int] = []

    def quantize(source: bytes, target: bytes, parameters: Any) -> int:
        used.append(parameters._obj.nthread)
        return int(real(source, target, parameters))

    real = gguf.llama_cpp.llama_model_quantize
    monkeypatch.setattr(gguf.llama_cpp, "llama_model_quantize", quantize)
    files = set()
    for count in (1, 2, 3, 16):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, count=count: set(range(count)))
        gguf.quantize(full[0], tmp_path / "made.gguf", kind, {})
        files.add((tmp_path / "made.gguf").read_bytes())
    assert used == [1, 2, 3, 16]
    assert len(files) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in GgufType if kind.needs_imatrix])
def test_llama_cpp_demands_an_imatrix_where_the_parameters_do(
    tmp_path: Path, full: tuple[Path, dict[str, str]], kind: GgufType
) -> None:
    with pytest.raises(FailureError, match="imatrix") as caught:
        gguf.quantize(full[0], tmp_path / "model.gguf", kind, {})
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "fallback"), [("IQ2_XS", "IQ4_NL"), ("Q2_K_S", "Q4_0"), ("IQ4_XS", "IQ4_NL")]
)
def test_every_fallback_is_named(tmp_path: Path, kind: str, fallback: str) -> None:
    params = params_for({"small": gguf_recipe(kind)})
    workspace = calibrated(tmp_path, params, hidden=256, intermediate=288, layers=1)
    quantize.run(workspace, params, "small")
    fallen = {
        row.name: (row.scheme, row.reason)
        for row in record_of(workspace, "small").coverage
        if row.reason and "fell back" in row.reason
    }
    reason = f"rows of 288 do not divide by 256: llama.cpp fell back to {fallback}"
    assert fallen == {"blk.0.ffn_down.weight": (fallback, reason)}


@pytest.mark.slow
def test_a_linear_that_llama_cpp_leaves_alone_fails_the_variant(tmp_path: Path) -> None:
    params = params_for({"small": gguf_recipe("Q4_K_M")})
    workspace = calibrated(tmp_path, params, hidden=256, intermediate=302, layers=1)
    with pytest.raises(FailureError, match=r"^blk\.0\.ffn_down\.weight: stayed F16 \(rows of 302"):
        quantize.run(workspace, params, "small")
    assert not workspace.variant_dir("small").exists()
