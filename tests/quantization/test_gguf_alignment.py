"""Alignment of a GGUF file: what it is good for, and what of the file it may change."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.checkpoint.unpacked_model import unpacked_model
from pipeline.core.errors import InputError
from pipeline.gguf import files as gguf
from pipeline.gguf.block_types import BLOCK_TYPES, read_blocks
from pipeline.numerics import align
from tests.architecture_models import calibrated_model, token_windows
from tests.gguf_variants import gguf_of, llama_cpp_log_probabilities, mean_kl


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "kind", "scale_search", "at_most"),
    [("llama", "Q4_0", True, 0.9), ("gemma2", "Q4_0", False, 0.9), ("llama", "Q8_0", False, 1.05)],
)
def test_an_aligned_file_is_nearer_to_the_base(
    tmp_path: Path, model: str, kind: str, scale_search: bool, at_most: float
) -> None:
    """On the tokens that it was aligned by, in llama.cpp; and the same bytes again.

    Llama's q_proj and k_proj have their rows in another order than the checkpoint's. In eight bits
    the activations that llama.cpp rounds make most of the KL.
    """
    workspace = calibrated_model(tmp_path, model)
    plain, aligned, again = (
        gguf_of(workspace, name, kind=kind, scale_search=scale_search, align_samples=num_samples)
        for name, num_samples in (("plain", 0), ("aligned", 512), ("again", 512))
    )
    windows = token_windows()
    with torch.inference_mode():
        logits = unpacked_model(workspace.base_dir)(input_ids=torch.tensor(windows)).logits
    kl = [
        mean_kl(logits.log_softmax(-1), llama_cpp_log_probabilities(it, windows))
        for it in (plain, aligned)
    ]
    assert 0 < kl[1] < at_most * kl[0], kl
    assert aligned.read_bytes() == again.read_bytes()
    changed = {
        part
        for before, after in zip(gguf.read_tensors(plain), gguf.read_tensors(aligned), strict=True)
        for part in changed_parts(before, after)
    }
    assert changed == {"levels"}


@pytest.mark.slow
def test_alignment_that_makes_it_worse_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(align, "STEP_SHARE", 3e4)
    workspace = calibrated_model(tmp_path, "llama")
    expected = (
        r"^align_samples = 512: alignment raised the KL to the base from [\d.e-]+ to [\d.e-]+ nats "
        r"per token, so this model cannot be aligned; set it to 0$"
    )
    with pytest.raises(InputError, match=expected):
        gguf_of(workspace, "aligned", align_samples=512)


def changed_parts(before: gguf.GgufTensor, after: gguf.GgufTensor) -> set[str]:
    """The parts of the blocks of a tensor that are not the same; of other types, all or none."""
    assert (before.name, before.type, before.shape) == (after.name, after.type, after.shape)
    kind = BLOCK_TYPES.get(before.type)
    if kind is None:
        return set() if torch.equal(before.values(), after.values()) else {"values"}
    parts = [asdict(read_blocks(kind, tensor.rows())) for tensor in (before, after)]
    return {name for name, part in parts[0].items() if not np.array_equal(part, parts[1][name])}
