"""Second moments of linear inputs: the one thing that calibration keeps.

For an input X (n tokens × in_features) it is G = XᵀX / n, float32. It is all that GPTQ (its
Hessian), AWQ (output error and input magnitudes) and llama.cpp's importance matrix (diag G) need.
"""

import torch
from torch import Tensor


class GramAccumulator:
    """Sums XᵀX over batches. Memory: one float32 matrix of in_features × in_features."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self._sum = torch.zeros(in_features, in_features, dtype=torch.float32, device=device)
        self._num_tokens = 0

    @property
    def in_features(self) -> int:
        return self._sum.shape[0]

    def add(self, inputs: Tensor) -> None:
        """Add a batch of inputs, any leading shape × in_features, any float dtype."""
        rows = inputs.reshape(-1, inputs.shape[-1]).to(torch.float32)
        self._sum.addmm_(rows.T, rows)
        self._num_tokens += rows.shape[0]

    def gram(self) -> Tensor:
        """G, float32, in_features × in_features, exactly symmetric."""
        mean = self._sum / self._num_tokens
        return torch.triu(mean) + torch.triu(mean, diagonal=1).T


def pack_upper(gram: Tensor) -> Tensor:
    """The upper triangle by rows, a vector of n (n + 1) / 2."""
    size = gram.shape[0]
    rows, columns = torch.triu_indices(size, size, device=gram.device)
    return gram[rows, columns]


def unpack_upper(packed: Tensor, size: int) -> Tensor:
    """The symmetric matrix whose upper triangle `pack_upper` wrote."""
    rows, columns = torch.triu_indices(size, size, device=packed.device)
    gram = packed.new_empty(size, size)
    gram[rows, columns] = packed
    gram[columns, rows] = packed
    return gram


def output_error(delta: Tensor, gram: Tensor) -> Tensor:
    """tr(ΔW G ΔWᵀ): the mean squared change of the output, summed over output features."""
    return ((delta @ gram) * delta).sum()
