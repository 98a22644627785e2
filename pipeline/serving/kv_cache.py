"""Memory that serving takes beside the weights: the engine, and keys and values of tokens."""

from math import ceil

# Resident memory of an engine without weights and KV cache, measured on x86 CPUs.
VLLM_BYTES = 2 << 30
LLAMA_CPP_BYTES = 300 << 20
# KV cache where the configuration does not say how large a token's keys and values are.
UNKNOWN_KV_BYTES = 1 << 30


def kv_cache_bytes(
    num_tokens: int,
    *,
    num_layers: int,
    num_key_value_heads: int,
    head_dim: int,
    bytes_per_value: float,
) -> int:
    """Compute the bytes of a key and a value for every token, layer, head and channel."""
    values = 2 * num_layers * num_key_value_heads * head_dim
    return ceil(num_tokens * values * bytes_per_value)
