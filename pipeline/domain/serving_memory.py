"""The memory that serving takes besides the weights: keys and values of every token in flight."""

from math import ceil


def kv_cache_bytes(
    num_tokens: int,
    *,
    num_layers: int,
    num_key_value_heads: int,
    head_dim: int,
    bytes_per_value: float,
) -> int:
    """A key and a value for every token, layer, head and channel."""
    values = 2 * num_layers * num_key_value_heads * head_dim
    return ceil(num_tokens * values * bytes_per_value)
