"""Drift: what quantizing the layers before did to the input of a linear, and the remedy.

In the base a linear W reads x; where it is served it reads x_q, which comes from layers that are
quantized already. What is wanted of Ŵ is the output of the base from the input that it gets: the
least E‖W x − Ŵ x_q‖². With G = E[x_q x_qᵀ] and the drift D = E[(x − x_q) x_qᵀ] that is

    tr((W* − Ŵ) G (W* − Ŵ)ᵀ) + constant,    W* = W + W D G⁻¹,

the objective that all algorithms here have, for other weights: they need not know. This is the
asymmetric calibration of Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric
Calibration", arXiv 2504.02692, who solve it column by column inside GPTQ.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.numerics.gptq import dampened
from pipeline.numerics.gram import GramAccumulator

# How far the weights go towards W*: all the way, they also follow what is chance in the samples. KL
# of a 4-bit AWQ file of babyllama, 96 × 256 tokens: 0.0129 at 0, 0.0112 at a half, 0.0140 at 1.
SHARE = 0.5


class DriftAccumulator(GramAccumulator):
    """Sums over inputs of both kinds, the base's before the quantized ones of the same tokens.

    G is that of the quantized ones. Memory: two float32 matrices of in_features × in_features.
    """

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self._drift_sum = torch.zeros_like(self._sum)

    def add(self, inputs: Tensor) -> None:
        """Add a batch, 2 · samples × … × in_features, any float dtype."""
        base, quantized = (
            half.reshape(-1, self.in_features).to(torch.float32) for half in inputs.chunk(2)
        )
        super().add(quantized)
        self._drift_sum.addmm_((base - quantized).T, quantized)

    def drift(self) -> Tensor:
        """D, float32, in_features × in_features."""
        return self._drift_sum / self.num_tokens


def compensate_drift(
    weights: Mapping[str, Tensor], drift: Tensor, gram: Tensor, *, dampening_frac: float
) -> dict[str, Tensor]:
    """W + SHARE · (W* − W), float32, of linears that read the same input, by name.

    G of the quantized input is dampened as for rounding; without drift W stays as it is.
    """
    factor = torch.linalg.cholesky(dampened(gram, dampening_frac))
    return {
        name: torch.add(
            weight.to(torch.float32),
            torch.cholesky_solve((weight.to(torch.float32) @ drift).T, factor).T,
            alpha=SHARE,
        )
        for name, weight in weights.items()
    }
