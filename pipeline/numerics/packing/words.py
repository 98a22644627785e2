"""Pack small unsigned integers into 32-bit words, as a stream of bits from the lowest bit up.

Integers of 2, 4 and 8 bits fill whole words. 32 integers of 3 bits fill three words, where the 11th
and the 22nd integer lie across two words. The formats of AutoGPTQ, AutoAWQ and compressed-tensors
all store integers like this; they differ in the dimension that is packed.
"""

from math import lcm

import torch
from torch import Tensor

WORD_BITS = 32


def pack(integers: Tensor, num_bits: int) -> Tensor:
    """Pack along the last dimension: … × n (any dtype, 0 … 2^num_bits − 1) to int32 … × n·b/32.

    n is a multiple of `per_block(num_bits)`.
    """
    block = per_block(num_bits)
    values = integers.to(torch.int32).reshape(*integers.shape[:-1], -1, block)
    words = values.new_zeros(*values.shape[:-1], block * num_bits // WORD_BITS)
    for number in range(block):
        word, shift = divmod(number * num_bits, WORD_BITS)
        words[..., word] |= values[..., number] << shift
        if shift + num_bits > WORD_BITS:
            words[..., word + 1] |= values[..., number] >> (WORD_BITS - shift)
    return words.flatten(-2).contiguous()


def unpack(words: Tensor, num_bits: int) -> Tensor:
    """Unpack int32 … × words to int32 … × n, the inverse of `pack`."""
    block = per_block(num_bits)
    blocks = words.reshape(*words.shape[:-1], -1, block * num_bits // WORD_BITS)
    values = blocks.new_empty(*blocks.shape[:-1], block)
    for number in range(block):
        word, shift = divmod(number * num_bits, WORD_BITS)
        low_bits = min(num_bits, WORD_BITS - shift)
        value = (blocks[..., word] >> shift) & _mask(low_bits)
        if low_bits < num_bits:
            value |= (blocks[..., word + 1] & _mask(num_bits - low_bits)) << low_bits
        values[..., number] = value
    return values.flatten(-2)


def per_block(num_bits: int) -> int:
    """Return the least number of integers that fills whole words."""
    return lcm(WORD_BITS, num_bits) // num_bits


def _mask(num_bits: int) -> int:
    return (1 << num_bits) - 1
