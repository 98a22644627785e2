"""What cannot be aligned is refused in one line; the rest is in tests/stages/test_quantize.py."""

import pytest

from pipeline.core.errors import InputError
from pipeline.quantization.alignment import require_alignable


def test_experts_of_a_mixture_are_refused() -> None:
    linears = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.experts.3.up_proj"]
    require_alignable(linears, num_samples=0)
    with pytest.raises(InputError, match="align_samples = 2: the experts of a mixture cannot"):
        require_alignable(linears, num_samples=2)
