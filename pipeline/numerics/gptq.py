"""GPTQ: round one column at a time, and correct the columns that follow for its error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv 2210.17323. The objective is tr((W − Ŵ) G (W − Ŵ)ᵀ) with G = XᵀX / n. Rows of W are
independent, so linears that read the same input are rounded together as one stacked matrix. The
grid is given; `pipeline.numerics.grid` makes it.
"""

from typing import Protocol

import torch
from torch import Tensor

from pipeline.numerics.gram import cholesky_factor

BLOCK_COLUMNS = 128


class RoundingGrid(Protocol):
    """What a grid has to say so that weights can be rounded on it; `Grid` explains the names."""

    @property
    def scale(self) -> Tensor: ...
    @property
    def zero(self) -> Tensor: ...
    @property
    def group_size(self) -> int: ...
    def snap_(self, levels: Tensor) -> Tensor: ...


def round_with_feedback(
    weight: Tensor, gram: Tensor, grid: RoundingGrid, *, dampening_frac: float
) -> Tensor:
    """Round `weight` (float32, out × in) to integers of `grid`, returned in float32, out × in.

    Columns are taken in falling order of diag G (the paper's act-order). Each keeps the group that
    it has in the file (static groups), so the file needs no permutation. `dampening_frac` of the
    mean of diag G is added to the diagonal. Inputs that are always zero do not affect the feedback.
    """
    order = torch.argsort(gram.diagonal(), descending=True, stable=True)
    feedback = _inverse_cholesky(gram, order, dampening_frac)
    # Transposed, so that the inner loop reads contiguous memory.
    scales, zeros = (part.T.contiguous().unbind() for part in (grid.scale, grid.zero))
    remaining = weight.T[order]
    integers = torch.empty_like(remaining)
    integers_of, column_at = integers.unbind(), order.tolist()
    for start in range(0, len(column_at), BLOCK_COLUMNS):
        end = min(start + BLOCK_COLUMNS, len(column_at))
        block, within = remaining[start:end], feedback[start:end, start:end]
        errors = torch.empty_like(block)
        own = within.diagonal().unbind()
        parts = zip(block.unbind(), errors.unbind(), within.unbind(), own, strict=True)
        for i, (values, error, pushed, divisor) in enumerate(parts):
            column = column_at[start + i]
            group = column // grid.group_size
            scale, zero = scales[group], zeros[group]
            chosen = torch.div(values, scale, out=integers_of[column])
            grid.snap_(chosen.add_(zero))
            torch.sub(values, (chosen - zero).mul_(scale), out=error).div_(divisor)
            block[i + 1 :].addr_(pushed[i + 1 :], error, alpha=-1)
        remaining[end:].addmm_(feedback[start:end, end:].T, errors, alpha=-1)
    return integers.T


def _inverse_cholesky(gram: Tensor, order: Tensor, dampening_frac: float) -> Tensor:
    """Compute the upper Cholesky factor of the inverse of the dampened G, permuted by `order`.

    It follows from the Cholesky factor of G in the reverse order: if that G is L Lᵀ, then L⁻¹ with
    its rows and columns reversed is upper triangular, and is the factor. This takes one
    factorisation and one triangular solve instead of two factorisations and an inverse. Memory: two
    matrices of the size of G, because each step works in place or frees its source.
    """
    backwards = order.flip(0)
    factor = cholesky_factor(gram, dampening_frac, order=backwards)
    # Laid out by columns, so that the solve needs no copy.
    inverse = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device).mT
    torch.linalg.solve_triangular(factor, inverse, upper=False, out=inverse)
    del factor
    inverse = inverse.flip(0, 1)
    return inverse.contiguous()  # by rows, as the rounding reads it
