"""GPTQ: rounding one column at a time, with the error of each pushed into those still to come.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv 2210.17323. The objective is tr((W − Ŵ) G (W − Ŵ)ᵀ) with G = XᵀX / n.
"""

import torch
from torch import Tensor

from pipeline.numerics.grid import Grid

BLOCK_COLUMNS = 128


def round_with_feedback(
    weight: Tensor, gram: Tensor, grid: Grid, *, dampening_frac: float
) -> Tensor:
    """Integers for `weight` on a given grid, float32, out_features × in_features.

    Columns are taken in falling order of diag G (the paper's act-order) while each keeps the group
    it has in the file (static groups), so the file needs no permutation. `dampening_frac` of the
    mean of diag G is added to the diagonal; inputs that are always zero stay out of the feedback.
    """
    order = torch.argsort(gram.diagonal(), descending=True, stable=True)
    feedback = _inverse_cholesky(gram[order][:, order], dampening_frac)
    scale, zero = (columns[:, order] for columns in grid.columns())
    remaining = weight[:, order].clone()
    integers = torch.empty_like(remaining)
    num_columns = remaining.shape[1]
    for start in range(0, num_columns, BLOCK_COLUMNS):
        end = min(start + BLOCK_COLUMNS, num_columns)
        block = remaining[:, start:end].clone()
        errors = torch.empty_like(block)
        for i in range(end - start):
            column = start + i
            column_scale, column_zero = scale[:, column], zero[:, column]
            chosen = (block[:, i] / column_scale + column_zero).round().clamp(0, grid.largest)
            integers[:, column] = chosen
            value = (chosen - column_zero) * column_scale
            error = (block[:, i] - value) / feedback[column, column]
            block[:, i + 1 :].addr_(error, feedback[column, column + 1 : end], alpha=-1)
            errors[:, i] = error
        remaining[:, end:].addmm_(errors, feedback[start:end, end:], alpha=-1)
    restored = torch.empty_like(integers)
    restored[:, order] = integers
    return restored


def _inverse_cholesky(gram: Tensor, dampening_frac: float) -> Tensor:
    """The upper Cholesky factor of the inverse of the dampened G.

    Computed from the Cholesky factor of G with its rows and columns reversed: if G reversed is
    L Lᵀ, then the reverse of L⁻¹ is upper triangular and is the factor wanted. That is one
    factorisation and one triangular solve instead of two factorisations and an inverse.
    """
    dampened = gram.clone()
    diagonal = dampened.diagonal()
    mean = diagonal.mean().clamp(min=torch.finfo(torch.float32).tiny)
    diagonal.add_(dampening_frac * mean)
    lower = torch.linalg.cholesky(dampened.flip(0, 1))
    identity = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
    upper: Tensor = inverse.flip(0, 1).contiguous()
    return upper
