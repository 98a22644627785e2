"""Alignment of a packed checkpoint: what is done only once.

What alignment is good for is in tests/stages/test_quantize.py.
"""

from pathlib import Path

import pytest
from torch import Tensor

from pipeline.architectures.folds import GATED_FOLDS
from pipeline.calibration.statistics import Statistics
from pipeline.numerics import fold
from pipeline.quantization.packed_checkpoint import write_packed
from tests.architecture_models import base_manifest, calibrated_model
from tests.packed_models import packed_recipe


def test_scales_are_searched_once_and_folded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fold of both layers is searched when the layer is quantized, and never again."""
    search_scales, searched = fold.search_scales, []

    def recorded(*arguments: object, **options: object) -> Tensor:
        scales = search_scales(*arguments, **options)
        searched.append(scales)
        return scales

    monkeypatch.setattr(fold, "search_scales", recorded)
    workspace = calibrated_model(tmp_path, "llama")
    recipe = packed_recipe("awq", group_size=16, scale_search=True, align_samples=8)
    model_dir = tmp_path / "aligned" / "model"
    model_dir.mkdir(parents=True)
    write_packed(
        workspace.base_dir, base_manifest(workspace), recipe, Statistics(workspace), model_dir
    )
    assert len(searched) == 2 * len(GATED_FOLDS)
    assert [path.name for path in model_dir.parent.iterdir()] == ["model"]
