"""GPTQ v1 linears read word by word, as AutoGPTQ's kernels do; nothing here is quantline's.

AutoGPTQ 0.7.1, `auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py`, spells out the places of 3-bit
integers: ten in a word, the eleventh in its last two bits and the first of the next, and so on.
"""

import torch

# The places of 32 integers of 3 bits in three words: (word, shift, bits) for each piece.
THREE_BITS = (
    *([(0, 3 * place, 3)] for place in range(10)),
    [(0, 30, 2), (1, 0, 1)],
    *([(1, 3 * place + 1, 3)] for place in range(10)),
    [(1, 31, 1), (2, 0, 2)],
    *([(2, 3 * place + 2, 3)] for place in range(10)),
)


def integers(words: list[int], num_bits: int) -> list[int]:
    """The integers in a row of words."""
    if num_bits != 3:
        mask = 2**num_bits - 1
        return [word >> shift & mask for word in words for shift in range(0, 32, num_bits)]
    found = []
    for start in range(0, len(words), 3):
        for pieces in THREE_BITS:
            value, filled = 0, 0
            for word, shift, bits in pieces:
                value |= (words[start + word] >> shift & (2**bits - 1)) << filled
                filled += bits
            found.append(value)
    return found


def weight(tensors: dict[str, torch.Tensor], num_bits: int) -> torch.Tensor:
    """float32, out × in."""
    values = torch.tensor([integers(row, num_bits) for row in tensors["qweight"].T.tolist()])
    zeros = torch.tensor([integers(row, num_bits) for row in tensors["qzeros"].tolist()]) + 1
    groups = tensors["g_idx"].long()
    return (values - zeros[groups].T).float() * tensors["scales"].float()[groups].T
