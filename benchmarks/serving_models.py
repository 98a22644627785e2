"""The models of `benchmarks.serving`: random weights in the shape of Qwen2, plain and packed."""

import shutil
from pathlib import Path

import torch

from pipeline.checkpoint.reading import save_tensors
from tests.models import byte_bpe, write_json
from tests.packed_models import pack_nearest, packed_recipe

HIDDEN, INTERMEDIATE, HEADS, KEY_VALUE_HEADS, VOCABULARY = 1024, 4096, 16, 4, 1024
INITIALIZER_RANGE = 0.02
SEED = 0


def write_base(model_dir: Path, num_layers: int) -> None:
    """Write random bfloat16 weights, drawn as transformers initialises Qwen2."""
    model_dir.mkdir(parents=True)
    byte_bpe(VOCABULARY).save(str(model_dir / "tokenizer.json"))
    write_json(model_dir / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    write_json(
        model_dir / "config.json",
        {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE,
            "num_hidden_layers": num_layers,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KEY_VALUE_HEADS,
            "max_position_embeddings": 2048,
            "initializer_range": INITIALIZER_RANGE,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
        },
    )
    generator = torch.Generator().manual_seed(SEED)

    def random(*size: int) -> torch.Tensor:
        return (INITIALIZER_RANGE * torch.randn(size, generator=generator)).to(torch.bfloat16)

    key_value = HIDDEN // HEADS * KEY_VALUE_HEADS
    linears = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (key_value, HIDDEN),
        "self_attn.v_proj": (key_value, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }
    ones = torch.ones(HIDDEN, dtype=torch.bfloat16)
    tensors = {
        "model.embed_tokens.weight": random(VOCABULARY, HIDDEN),
        "model.norm.weight": ones.clone(),
    }
    for number in range(num_layers):
        prefix = f"model.layers.{number}."
        for name, size in linears.items():
            tensors[f"{prefix}{name}.weight"] = random(*size)
        for letter, width in (("q", HIDDEN), ("k", key_value), ("v", key_value)):
            bias = torch.zeros(width, dtype=torch.bfloat16)
            tensors[f"{prefix}self_attn.{letter}_proj.bias"] = bias
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = ones.clone()
    save_tensors(model_dir / "model.safetensors", tensors)


def write_packed(base_dir: Path, model_dir: Path, format_name: str) -> Path:
    """Write the base with its linears rounded to nearest, in groups of 128."""
    shutil.copytree(base_dir, model_dir)
    return pack_nearest(model_dir, packed_recipe(format_name, group_size=128))
