"""GGUF variants of tiny models, and their log-probabilities by llama.cpp."""

import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from pipeline.calibration.statistics import Statistics
from pipeline.core.workspace import Workspace
from pipeline.engines.in_llama_cpp import LlamaCppScorer
from pipeline.engines.scorer import Span
from pipeline.params.gguf_variants import GgufParams
from pipeline.quantization.gguf_variant import write_gguf
from tests.architecture_models import base_manifest
from tests.models import tiny_llama


def gguf_recipe(kind: str | None, **changes: object) -> GgufParams:
    plain = {
        "format": "gguf",
        **({"type": kind} if kind else {}),
        "scale_search": False,
        "imatrix": True,
        "rounding": "gptq",
        "quantized_inputs": False,
        "align_samples": 0,
    }
    return GgufParams.model_validate(plain | changes)


def gguf_of(
    workspace: Workspace, name: str, *, kind: str | None = "Q4_0", **changes: object
) -> Path:
    """A GGUF variant of the tiny model, beside its base; the tokenizer is another tiny model's."""
    if not (workspace.base_dir / "tokenizer.json").exists():
        other = tiny_llama(workspace.root / "other")
        for sidecar in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(other / sidecar, workspace.base_dir)
    model_dir = workspace.root / name / "model"
    model_dir.mkdir(parents=True)
    coverage, _ = write_gguf(
        workspace.base_dir,
        base_manifest(workspace),
        gguf_recipe(kind, **changes),
        Statistics(workspace),
        model_dir,
        model_name="tiny",
        metadata={},
        pre_tokenizer="gpt-2",
    )
    ratios = [row.error_ratio for row in coverage if row.relative_error is not None]
    largest = 2 if changes.get("align_samples") else 1  # for the whole, single errors may grow
    assert all(ratio is not None and 0 < ratio < largest for ratio in ratios), ratios
    assert [it.name for it in model_dir.parent.iterdir()] == ["model"]
    return model_dir / f"model-{kind or 'mixed'}.gguf"


def llama_cpp_log_probabilities(path: Path, windows: Sequence[Sequence[int]]) -> Tensor:
    with closing(LlamaCppScorer(path, label=path.name)) as scorer:
        logits = scorer.logits([Span(ids=tuple(window), start=0) for window in windows])
    return torch.stack([torch.from_numpy(rows) for rows in logits]).log_softmax(-1)


def mean_kl(base: Tensor, variant: Tensor) -> float:
    return float((base.exp() * (base - variant)).sum(-1).mean())
