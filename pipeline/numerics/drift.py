"""Drift: how quantized layers change the input of a later linear, and how to compensate it.

In the base, a linear W reads x. In a variant it reads x_q, which comes from quantized layers. Ŵ
should turn x_q into the output of the base, so the objective is the least E‖W x − Ŵ x_q‖². With
G = E[x_q x_qᵀ] and the drift D = E[(x − x_q) x_qᵀ] that is

    tr((W* − Ŵ) G (W* − Ŵ)ᵀ) + constant,    W* = W + W D G⁻¹.

This is the objective of all algorithms here with W* in place of W, so none of them changes. It is
the asymmetric calibration of Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for
Asymmetric Calibration", arXiv 2504.02692, who solve it column by column inside GPTQ.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.numerics.gram import GramAccumulator, cholesky_factor

# How far the weights move towards W*. At 1 they also fit the noise of the samples: KL of a 4-bit
# AWQ file of babyllama, 96 × 256 tokens, is 0.0129 at 0, 0.0112 at a half, 0.0140 at 1.
SHARE = 0.5


class DriftAccumulator(GramAccumulator):
    """Sums the moments of two inputs of the same tokens, the base's and the quantized one.

    G is that of the quantized input. Memory: two float32 matrices of in_features × in_features.
    """

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self._drift_sum = torch.zeros_like(self._sum)

    def add(self, inputs: Tensor) -> None:
        """Add a batch, 2 · samples × … × in_features, any float dtype.

        The first half of the samples is the base's input, the second half the quantized one.
        """
        base, quantized = (
            half.reshape(-1, self.in_features).to(torch.float32) for half in inputs.chunk(2)
        )
        super().add(quantized)
        self._drift_sum.addmm_((base - quantized).T, quantized)

    def drift(self) -> Tensor:
        """Return D, float32, in_features × in_features."""
        return self._drift_sum / self.num_tokens


def compensate_drift(
    weights: Mapping[str, Tensor], drift: Tensor, gram: Tensor, *, dampening_frac: float
) -> dict[str, Tensor]:
    """Compute W + SHARE · (W* − W), float32, for linears that read the same input, by name.

    `weights` are out × in, any float dtype; `drift` is D and `gram` is G, both in × in. G is
    dampened as for rounding. Without drift W does not change.
    """
    factor = cholesky_factor(gram, dampening_frac)
    return {
        name: torch.add(
            weight.to(torch.float32),
            torch.cholesky_solve((weight.to(torch.float32) @ drift).T, factor).T,
            alpha=SHARE,
        )
        for name, weight in weights.items()
    }
