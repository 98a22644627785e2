"""Tiny random checkpoints for tests: a whole Hugging Face directory in well under a second.

The weights are random but scaled like trained ones, so that logits differ from token to token and
damage by quantization can be measured. Nothing here knows a language.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ["<s>", "</s>"]
MIT_TEXT = """MIT License

Copyright (c) 2026 The authors of a random model

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""
CORPUS = (
    "the baker of the old town sells bread and salt near the river",
    "a small red boat crosses the lake every morning before the rain",
    "la panadera del pueblo vende pan y sal cerca del rio",
    "seven and five make twelve, and twelve and eight make twenty",
)


def tiny_llama(
    path: Path,
    *,
    hidden: int = 64,
    intermediate: int | None = None,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    vocab_size: int = 320,
    shards: int = 1,
    tie_embeddings: bool = False,
    dtype: torch.dtype = torch.float16,
    license_id: str | None = "mit",
    seed: int = 0,
) -> Path:
    """Make the directory `path`: a LlamaForCausalLM, byte-level BPE tokenizer, LICENSE, README.

    `intermediate` is 2 x `hidden` unless given; more than one of `shards` adds
    model.safetensors.index.json; `license_id` None leaves LICENSE and README out. The same
    arguments make the same bytes.
    """
    path.mkdir(parents=True)
    tokenizer = byte_bpe(vocab_size)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": hidden,
        "intermediate_size": intermediate or 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    write_json(path / "config.json", config)
    write_json(
        path / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL_TOKENS[0],
            "eos_token": SPECIAL_TOKENS[1],
            "model_max_length": 1024,
            "clean_up_tokenization_spaces": False,
        },
    )
    write_json(path / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1})
    save_shards(path, llama_tensors(config, dtype=dtype, seed=seed), shards=shards)
    if license_id is not None:
        (path / "LICENSE").write_text(MIT_TEXT)
        (path / "README.md").write_text(f"---\nlicense: {license_id}\n---\n# A random model\n")
    return path


def byte_bpe(vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer like GPT-2's: any text round-trips. At least 258 entries."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def llama_tensors(
    config: dict[str, object], *, dtype: torch.dtype, seed: int
) -> dict[str, torch.Tensor]:
    """The parameters of a LlamaForCausalLM by their checkpoint names."""
    size = {key: value for key, value in config.items() if isinstance(value, int)}
    hidden, ffn, vocab = size["hidden_size"], size["intermediate_size"], size["vocab_size"]
    query = size["num_attention_heads"] * size["head_dim"]
    key_value = size["num_key_value_heads"] * size["head_dim"]
    generator = torch.Generator().manual_seed(seed)

    def linear(rows: int, columns: int) -> torch.Tensor:
        weight = torch.randn(rows, columns, generator=generator)
        return weight.div(math.sqrt(columns)).to(dtype)

    def norm() -> torch.Tensor:
        return (1.0 + 0.1 * torch.randn(hidden, generator=generator)).to(dtype)

    embeddings = torch.randn(vocab, hidden, generator=generator).to(dtype)
    tensors = {"model.embed_tokens.weight": embeddings}
    for layer in range(size["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors[prefix + "input_layernorm.weight"] = norm()
        tensors[prefix + "self_attn.q_proj.weight"] = linear(query, hidden)
        tensors[prefix + "self_attn.k_proj.weight"] = linear(key_value, hidden)
        tensors[prefix + "self_attn.v_proj.weight"] = linear(key_value, hidden)
        tensors[prefix + "self_attn.o_proj.weight"] = linear(hidden, query)
        tensors[prefix + "post_attention_layernorm.weight"] = norm()
        tensors[prefix + "mlp.gate_proj.weight"] = linear(ffn, hidden)
        tensors[prefix + "mlp.up_proj.weight"] = linear(ffn, hidden)
        tensors[prefix + "mlp.down_proj.weight"] = linear(hidden, ffn)
    tensors["model.norm.weight"] = norm()
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = linear(vocab, hidden)
    return tensors


def save_shards(path: Path, tensors: dict[str, torch.Tensor], *, shards: int) -> None:
    """Write the tensors as one file, or as several with their index."""
    if shards == 1:
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in part}, path / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(path / "model.safetensors.index.json", index)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
