"""Memory that serving takes beside the weights: the engine, and keys and values of tokens."""

from collections.abc import Mapping
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


def kv_bytes_of_config(
    config: Mapping[str, object], num_tokens: int, *, bytes_per_value: float
) -> int:
    """Compute the bytes of the KV cache of `num_tokens` from the values of config.json."""
    numbers = {key: value for key, value in config.items() if isinstance(value, int)}
    try:
        heads = numbers["num_attention_heads"]
        return kv_cache_bytes(
            num_tokens,
            num_layers=numbers["num_hidden_layers"],
            num_key_value_heads=numbers.get("num_key_value_heads", heads),
            head_dim=numbers.get("head_dim") or numbers["hidden_size"] // heads,
            bytes_per_value=bytes_per_value,
        )
    except KeyError:
        return UNKNOWN_KV_BYTES
