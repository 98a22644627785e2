"""Accumulate and pack the second moments of linear inputs, which is what calibration keeps.

For an input X (n tokens × in_features) the second moment is G = XᵀX / n, float32. GPTQ (its
Hessian), AWQ (output error and input magnitudes) and llama.cpp's importance matrix (diag G) need
nothing else.
"""

import torch
from torch import Tensor

from pipeline.core.errors import InputError
from pipeline.core.progress import note

BLOCK = 1024
SMALLEST_MEAN = 1e-30  # of the diagonal of G; products of smaller ones are no normal float32
STRIPS, MIN_STRIP_ROWS = 8, 64
"""G is summed in strips of rows that start at the diagonal. Few strips are fast; more strips
compute less of the lower triangle, which is not used."""


class GramAccumulator:
    """Sums the upper triangle of XᵀX over batches.

    Memory: one float32 matrix of in_features × in_features.
    """

    def __init__(self, in_features: int, device: torch.device) -> None:
        self._sum = torch.zeros(in_features, in_features, dtype=torch.float32, device=device)
        self.num_tokens = 0

    @property
    def in_features(self) -> int:
        return self._sum.shape[0]

    @property
    def device(self) -> torch.device:
        return self._sum.device

    def add(self, inputs: Tensor) -> None:
        """Add a batch of inputs, any leading shape × in_features, any float dtype."""
        rows = inputs.reshape(-1, inputs.shape[-1]).to(torch.float32)
        width = max(MIN_STRIP_ROWS, self.in_features // STRIPS)
        for start in range(0, self.in_features, width):
            end = start + width
            self._sum[start:end, start:].addmm_(rows[:, start:end].T, rows[:, start:])
        self.num_tokens += rows.shape[0]

    def merge(self, other: "GramAccumulator") -> None:
        """Add the tokens of `other`."""
        self._sum += other._sum
        self.num_tokens += other.num_tokens

    def gram(self) -> Tensor:
        """Return G, float32, in_features × in_features, exactly symmetric."""
        return unpack_upper(self.packed(), self.in_features)

    def packed(self) -> Tensor:
        """Return the upper triangle of G by rows, a float32 vector of n (n + 1) / 2 numbers."""
        return pack_upper(self._sum).div_(self.num_tokens)


def pack_upper(gram: Tensor) -> Tensor:
    """Copy the upper triangle of an n × n matrix by rows into a vector of n (n + 1) / 2 numbers.

    The lower triangle is not read.
    """
    size = gram.shape[0]
    packed = gram.new_empty(size * (size + 1) // 2)
    for row, part in enumerate(torch.split(packed, list(range(size, 0, -1)))):
        part.copy_(gram[row, row:])
    return packed


def unpack_upper(packed: Tensor, size: int) -> Tensor:
    """Make the symmetric matrix, size × size, whose upper triangle `pack_upper` wrote."""
    above = torch.ones(size, size, dtype=torch.bool, device=packed.device).triu_()
    gram = packed.new_empty(size, size).masked_scatter_(above, packed)
    for start in range(0, size, BLOCK):  # transposed block by block, which fits into caches
        end = min(start + BLOCK, size)
        corner = gram[start:end, start:end]
        corner.copy_(torch.triu(corner) + torch.triu(corner, diagonal=1).T)
        gram[end:, start:end] = gram[start:end, end:].T
    return gram


def packed_diagonal(packed: Tensor, size: int) -> Tensor:
    """Return the diagonal of the matrix that `pack_upper` wrote, without making the matrix."""
    rows = torch.arange(size, device=packed.device)
    return packed[rows * size - rows * (rows - 1) // 2]


def dampened(gram: Tensor, dampening_frac: float) -> Tensor:
    """Copy G with the share `dampening_frac` of its mean diagonal added to the diagonal.

    Of inputs that are always zero, whose errors count nothing, the mean is taken as 1.
    """
    result = gram.clone()
    mean = gram.diagonal().mean()
    result.diagonal().add_(dampening_frac * torch.where(mean > SMALLEST_MEAN, mean, 1.0))
    return result


def cholesky_factor(gram: Tensor, dampening_frac: float, *, order: Tensor | None = None) -> Tensor:
    """Compute the lower Cholesky factor of the dampened G, float32, with the channels in `order`.

    Rounding errors of float32 can leave G without one, as for inputs of which one channel is far
    larger than all others. Then the dampening is raised tenfold until there is one, and this is
    said. Raises InputError for a G that is not finite, which has none.
    """
    frac = dampening_frac
    while True:
        matrix = dampened(gram, frac)
        if order is not None:
            matrix = matrix[order][:, order]
        factor: Tensor
        factor, failed_at = torch.linalg.cholesky_ex(matrix)
        if not failed_at:
            break
        if not gram.isfinite().all():
            raise InputError(
                f"the inputs of a linear, {len(gram)} channels, are not finite numbers; set "
                "quantized_inputs to false, or use another checkpoint"
            )
        frac *= 10
    if frac > dampening_frac:
        note(
            f"dampening_frac = {dampening_frac:g}: too little for the second moments of an input "
            f"of {len(gram)} channels; {frac:g} was taken"
        )
    return factor


def output_error(delta: Tensor, gram: Tensor) -> Tensor:
    """Compute tr(ΔW G ΔWᵀ): the mean squared change of the output, summed over output features.

    `delta` is ΔW, float32, out × in; `gram` is G, in × in. Returns a scalar tensor.
    """
    return (delta @ gram).mul_(delta).sum()
