"""Predict the loss of rounding a matrix in some way, from a few of its rows.

For a linear it is half of Σᵢ Sᵢᵢ (ΔW G ΔWᵀ)ᵢᵢ, with S the sensitivity of the model's output
(`pipeline.calibration.sensitivity`). Rows are drawn with a probability in proportion to Sᵢᵢ, so
that the mean of their errors estimates the sum. Embeddings that are looked up cause half of
Σᵥ shareᵥ Σⱼ Dⱼ ΔEᵥⱼ², with D the sensitivity of their columns. All losses are in nats per token;
they add up as if the errors of matrices were independent.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.params.variants import BUDGET_ROWS


def predicted_loss(
    values: Tensor, weights: Tensor, metric: Tensor, rounded: Callable[[Tensor], Tensor]
) -> float:
    """Predict the loss of `rounded`, a function of rows × width, on `values` (float32).

    `weights` are of the rows, and may be fewer where the file pads the vocabulary. `metric` is
    width × width, or its diagonal.
    """
    rows = values[_drawn_rows(weights)]
    error = rounded(rows) - rows
    moved = error * metric if metric.ndim == 1 else error @ metric
    return float(weights.sum()) * float((moved * error).sum(1).mean()) / 2


def _drawn_rows(weights: Tensor) -> Tensor:
    """Draw rows evenly along the sum of their weights."""
    ends = weights.double().cumsum(0)
    places = torch.arange(BUDGET_ROWS, dtype=torch.float64, device=ends.device)
    places = (places + 0.5) / BUDGET_ROWS * ends[-1]
    return torch.searchsorted(ends, places).clamp_(max=len(weights) - 1)
