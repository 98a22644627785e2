"""The KV cache of a known model."""

from pipeline.serving.kv_cache import kv_cache_bytes


def test_the_kv_cache_of_llama_3_8b_takes_an_eighth_of_a_mebibyte_per_token() -> None:
    size = kv_cache_bytes(
        8192, num_layers=32, num_key_value_heads=8, head_dim=128, bytes_per_value=2
    )
    assert size == 2**30
