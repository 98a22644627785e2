"""A GGUF variant with a budget: its size, its types, and what they are good for."""

from pathlib import Path

import pytest
import torch
from gguf import GGUFReader, LlamaFileType

from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.errors import InputError
from pipeline.gguf import files as gguf
from pipeline.quantization import gguf_budget
from tests.architecture_models import calibrated_model, token_windows
from tests.gguf_variants import gguf_of, llama_cpp_log_probabilities, mean_kl


@pytest.mark.slow
@pytest.mark.parametrize(("model", "scale_search"), [("llama", False), ("qwen3", True)])
def test_the_bits_of_a_budget_go_where_they_count(
    tmp_path: Path, model: str, scale_search: bool
) -> None:
    """At the size of a file whose matrices all have one type, on tokens that it did not see."""
    workspace = calibrated_model(tmp_path, model, samples=96)
    plain = gguf_of(workspace, "plain", kind="Q4_0", scale_search=scale_search)
    budget = {"size": f"{plain.stat().st_size / 1e6:.6f} MB"}
    mixed, again = (
        gguf_of(workspace, name, kind=None, budget=budget, scale_search=scale_search)
        for name in ("mixed", "again")
    )
    assert 0.97 * plain.stat().st_size < mixed.stat().st_size <= plain.stat().st_size
    assert mixed.read_bytes() == again.read_bytes()
    types = {tensor.type for tensor in gguf.read_tensors(mixed) if len(tensor.shape) > 1}
    assert len(types) > 1
    field = GGUFReader(mixed).get_field("general.file_type")
    assert field is not None
    assert LlamaFileType(field.contents()).name.removeprefix("MOSTLY_") in types
    windows = token_windows(samples=64, seed=1)
    with torch.inference_mode():
        logits = unpacked_model(workspace.base_dir)(input_ids=torch.tensor(windows)).logits
    kl = [
        mean_kl(logits.log_softmax(-1), llama_cpp_log_probabilities(it, windows))
        for it in (plain, mixed)
    ]
    assert 0 < kl[1] < 0.9 * kl[0], kl


@pytest.mark.slow
def test_a_budget_that_nothing_fits_is_one_line_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = calibrated_model(tmp_path, "llama")
    monkeypatch.setattr(gguf_budget, "measure_sensitivities", None)
    expected = (
        r"^budget = {'bits_per_weight': 2\.0}: leaves .* for the weights, .* a larger budget$"
    )
    with pytest.raises(InputError, match=expected):
        gguf_of(workspace, "small", kind=None, budget={"bits_per_weight": 2.0})
    assert list((tmp_path / "small" / "model").iterdir()) == []
