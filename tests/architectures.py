"""A tiny random model of every architecture that the pipeline folds, saved by transformers."""

from pathlib import Path

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING as CLASSES
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

HIDDEN, FFN, EXPERT_FFN, VOCABULARY = 64, 128, 32, 320
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
# Sliding windows shorter than the test's sequences, biases, tied embeddings, and one dense layer
# among those with experts, so that each way of a model to be special is there.
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "mistral": MistralConfig(**SHAPE, head_dim=32, sliding_window=8),
    "qwen2": Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16),
    "phi3": Phi3Config(**SHAPE, partial_rotary_factor=0.5, sliding_window=8),
    "gemma2": Gemma2Config(**SHAPE, head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    "gemma3": Gemma3TextConfig(
        **SHAPE,
        head_dim=16,
        sliding_window=8,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "mixtral": MixtralConfig(
        **SHAPE | {"intermediate_size": EXPERT_FFN},
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "qwen3-moe": Qwen3MoeConfig(
        **SHAPE,
        head_dim=16,
        moe_intermediate_size=EXPERT_FFN,
        num_experts=4,
        num_experts_per_tok=2,
        mlp_only_layers=[1],
        norm_topk_prob=True,
    ),
}


def tiny_model(path: Path, name: str, *, dtype: torch.dtype = torch.float16) -> Path:
    """Make the directory `path`: `config.json` and weights, scaled like trained ones."""
    config = CONFIGS[name]
    torch.manual_seed(7)
    model = CLASSES[type(config)](config)
    generator = torch.Generator().manual_seed(8)
    for parameter_name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if "norm" in parameter_name:
            zero_centred = name.startswith("gemma")
            parameter.data = 0.2 * values + (0.0 if zero_centred else 1.0)
        elif parameter_name.endswith("bias"):
            parameter.data = 0.1 * values
        elif "embed" in parameter_name:
            parameter.data = values * (HIDDEN**-0.5 if config.tie_word_embeddings else 1.0)
        else:
            parameter.data = values * parameter.shape[-1] ** -0.5
    model.to(dtype).save_pretrained(path)
    return path


def token_windows(*, samples: int = 24, tokens: int = 32, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    ids: list[list[int]] = torch.randint(
        VOCABULARY, (samples, tokens), generator=generator
    ).tolist()
    return ids
