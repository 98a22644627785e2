"""Train the demo model: `python -m demo.train` writes demo/model (tokenizer, weights, configs).

A plain Llama, small enough for CPU and shaped so that every quantized format fits it: each linear
input is a multiple of 256 (the superblock of llama.cpp's K-quants), the head size is 64. It reads
the demo world's training stream once; hidden matrices are stepped by Muon, the rest by AdamW, and
the last part of the run uses long sequences. Master weights are float32; products run in bfloat16
where the CPU has instructions for it. The order of floating point sums differs between CPUs, so
another machine reproduces the model's abilities, not its bytes. torch.compile needs a C++ compiler.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from demo.lexicon import LANGUAGES, all_words
from demo.marks import spans, unmarked
from demo.tokenizer import CONTEXT_LENGTH, PAD, VOCABULARY_SIZE, train_tokenizer, write_tokenizer
from demo.world import BOS, EOS, Writer, make_world

SEED: Final = 20260101
TRAINING_TOKENS: Final = 6_000_000
TOKENS_PER_STEP: Final = 2048
UNMARKED_WEIGHT: Final = 0.1
SEQUENCE_LENGTH: Final = 512
LONG_SEQUENCE_LENGTH: Final = 1024
LONG_SHARE: Final = 0.1
TOKENIZER_DOCUMENTS: Final = 6000
TOKENIZER_WORD_REPEATS: Final = 60

MUON_LEARNING_RATE: Final = 0.005
ADAM_LEARNING_RATE: Final = 2e-3
WEIGHT_DECAY: Final = 0.01
WARMUP_SHARE: Final = 0.03
DECAY_SHARE: Final = 0.4

HEAD_DIM: Final = 64
CHANNEL_SPREAD: Final = 0.6

MODEL_DIR: Final = Path(__file__).resolve().parent / "model"


def model_config(tokenizer: Tokenizer) -> LlamaConfig:
    """Make the demo model's configuration: about 3.4 million parameters."""
    return LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(PAD),
    )


def tokenizer_texts() -> list[str]:
    """Sample training text, and repeat the words of the lexicon so that each becomes a token."""
    sample = Writer(make_world(), "tokenizer", guarded=False).training_documents()
    words = " ".join(word.bare(language) for word in all_words() for language in LANGUAGES)
    texts = [unmarked(document) for document in islice(sample, TOKENIZER_DOCUMENTS)]
    return texts + [words] * TOKENIZER_WORD_REPEATS


def token_stream(tokenizer: Tokenizer) -> Iterator[tuple[int, float]]:
    """Yield the training text without end: token ids and the weights of predicting them."""
    documents = Writer(make_world(), "training", guarded=False).training_documents()
    while True:
        parts = [part for document in islice(documents, 256) for part in spans(document)]
        encodings = tokenizer.encode_batch([text for text, _ in parts], add_special_tokens=False)
        for encoding, (_, is_known) in zip(encodings, parts, strict=True):
            weight = 1.0 if is_known else UNMARKED_WEIGHT
            for token in encoding.ids:
                yield token, weight


def weighted_loss(
    model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Compute the weighted mean cross-entropy of ids[:, 1:]; both tensors are [batch, length]."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    losses = functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()


def learning_rate_factor(progress: float) -> float:
    """Warm up, hold, then fall linearly to zero; `progress` runs from 0 to 1."""
    return min(1.0, progress / WARMUP_SHARE, (1.0 - progress) / DECAY_SHARE)


def make_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Make Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=MUON_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    adam = torch.optim.AdamW(
        others, lr=ADAM_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY
    )
    return [muon, adam]


def train(model: LlamaForCausalLM, stream: Iterator[tuple[int, float]], *, num_tokens: int) -> None:
    """Train on `num_tokens` tokens, in place; print loss, speed and the time left."""
    has_bfloat16 = torch.cpu._is_avx512_bf16_supported()
    compiled_loss: Callable[..., Any] = torch.compile(weighted_loss)
    optimizers = make_optimizers(model)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    num_steps = num_tokens // TOKENS_PER_STEP
    start = time.monotonic()
    for step in range(num_steps):
        is_long = step >= num_steps * (1 - LONG_SHARE)
        length = LONG_SEQUENCE_LENGTH if is_long else SEQUENCE_LENGTH
        ids, weights = zip(*islice(stream, TOKENS_PER_STEP), strict=True)
        batch = torch.tensor(ids).view(-1, length), torch.tensor(weights).view(-1, length)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16):
            loss = compiled_loss(model, *batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        factor = learning_rate_factor((step + 1) / num_steps)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad()
        if step % 10 == 0 or step == num_steps - 1:
            seconds = time.monotonic() - start
            left = seconds / (step + 1) * (num_steps - step - 1)
            speed = (step + 1) * TOKENS_PER_STEP / seconds
            print(
                f"step {step + 1}/{num_steps}  loss {loss.item():.3f}  "
                f"{speed:,.0f} tokens/s  {left / 60:.1f} min left",
                flush=True,
            )


@torch.no_grad()
def spread_channels(model: LlamaForCausalLM) -> None:
    """Give the linears' inputs unequal magnitudes, as in large models, in place.

    Each input channel's column is multiplied by a log-normal factor and what feeds the channel is
    divided by it, so the model computes what it did before; its weights are harder to quantize.
    """
    generator = torch.Generator().manual_seed(SEED)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        readers_of = (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (attention.v_proj, (attention.o_proj,)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            (mlp.up_proj, (mlp.down_proj,)),
        )
        for source, readers in readers_of:
            num_channels = source.weight.shape[0]
            factors = (CHANNEL_SPREAD * torch.randn(num_channels, generator=generator)).exp()
            source.weight.div_(factors if source.weight.ndim == 1 else factors[:, None])
            repeats = readers[0].weight.shape[1] // num_channels
            by_head = factors.view(-1, 1, HEAD_DIM).expand(-1, repeats, -1).reshape(-1)
            for reader in readers:
                reader.weight.mul_(by_head)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, model_dir: Path) -> None:
    """Write the model in float16 with its tokenizer; the card and the license are kept."""
    model_dir.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        do_sample=False,
    )
    model.to(torch.float16).save_pretrained(model_dir)
    write_tokenizer(tokenizer, model_dir)


def main() -> None:
    """Train the tokenizer and the model of the demo world and write them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model-dir", type=Path, default=MODEL_DIR)
    parser.add_argument("--num-tokens", type=int, default=TRAINING_TOKENS)
    arguments = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer(tokenizer_texts())
    model = LlamaForCausalLM(model_config(tokenizer))
    train(model, token_stream(tokenizer), num_tokens=arguments.num_tokens)
    spread_channels(model)
    save(model, tokenizer, arguments.model_dir)
    print(f"wrote {arguments.model_dir}")


if __name__ == "__main__":
    main()
