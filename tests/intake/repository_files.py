"""Write the files of a repository: tokenizer, card, and weights with or without values."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, islice, product
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers

from tests.models import write_json

LICENSES = Path(__file__).resolve().parent.parent / "licenses"
BYTES_PER_VALUE = 2  # BF16
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model. `text_tokens` are the entries of its vocabulary below special tokens.

    Only `is_tiny` models have values in their weights.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    text_tokens: int
    vocab: int
    shards: int
    is_tiny: bool = False


def common_sizes(sizes: Sizes, *, head_dim: bool = True) -> dict[str, int]:
    """Return the keys of config.json that every model has."""
    return {
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.kv_heads,
        "vocab_size": sizes.vocab,
        **({"head_dim": sizes.head_dim} if head_dim else {}),
    }


def outer_tensors(sizes: Sizes, *, tied: bool, inside: str = "model.") -> dict[str, Shape]:
    """Return the shapes of the tensors outside the layers."""
    table = (sizes.vocab, sizes.hidden)
    return {
        f"{inside}embed_tokens.weight": table,
        f"{inside}norm.weight": (sizes.hidden,),
        **({} if tied else {"lm_head.weight": table}),
    }


def write_tokenizer(
    directory: Path,
    sizes: Sizes,
    special: Mapping[str, int],
    *,
    bos: str | None = None,
    normalizer: str | None = None,
) -> None:
    """Write tokenizer.json: byte-level BPE as GPT-4's, with special tokens of these ids.

    The merges are pairs of bytes, then threes: as many as there are, and as slow, as in real ones.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [first + second for first, second in product(alphabet, repeat=2)]
    all_merges = chain(product(alphabet, alphabet), product(pairs, alphabet))
    merges = list(islice(all_merges, sizes.text_tokens - len(alphabet)))
    texts = [*alphabet, *(head + last for head, last in merges)]
    parts: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
    post_processor: dict[str, Any] = byte_level | {"use_regex": True}
    if bos is not None:
        sequence = {"Sequence": {"id": "A", "type_id": 0}}
        start = {"SpecialToken": {"id": bos, "type_id": 0}}
        post_processor = {
            "type": "TemplateProcessing",
            "single": [start, sequence],
            "pair": [start, sequence, start, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [special[bos]], "tokens": [bos]}},
        }
    write_json(
        directory / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": number, **entry} for number, entry in _added(special).items()],
            "normalizer": normalizer and {"type": normalizer},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
            "post_processor": post_processor,
            "decoder": byte_level | {"use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {text: number for number, text in enumerate(texts)} | dict(special),
                "merges": [f"{head} {last}" for head, last in merges],
            },
        },
    )


def added_tokens(special: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Return `added_tokens_decoder` of tokenizer_config.json."""
    return {str(number): entry for number, entry in _added(special).items()}


def _added(special: Mapping[str, int]) -> dict[int, dict[str, Any]]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        number: {"content": text, **flags, "special": True}
        for text, number in sorted(special.items(), key=lambda entry: entry[1])
    }


def write_vocabulary(directory: Path) -> None:
    """Write vocab.json and merges.txt, which say a part of tokenizer.json again."""
    model = json.loads((directory / "tokenizer.json").read_bytes())["model"]
    write_json(directory / "vocab.json", model["vocab"])
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *model["merges"], ""]))


def write_card(directory: Path, front_matter: str) -> None:
    """Write README.md with this front matter, and the .gitattributes that the hub makes."""
    (directory / "README.md").write_text(f"---\n{front_matter}\n---\n# {directory.name}\n")
    (directory / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")


def write_weights(
    directory: Path, tensors: Mapping[str, Shape], sizes: Sizes, *, pattern: str
) -> None:
    """Write shards of about one size, and their index. Values are normal where `sizes.is_tiny`."""
    total = sum(map(tensor_bytes, tensors.values()))
    shards: list[dict[str, Shape]] = [{} for _ in range(sizes.shards)]
    written = 0
    for name, shape in tensors.items():
        shards[min(written * sizes.shards // total, sizes.shards - 1)][name] = shape
        written += tensor_bytes(shape)
    files = [pattern.format(number + 1, sizes.shards) for number in range(sizes.shards)]
    generator = torch.Generator().manual_seed(0)
    for file, shard in zip(files, shards, strict=True):
        if sizes.is_tiny:
            values = {
                name: torch.randn(shape, generator=generator).mul(0.1).bfloat16()
                for name, shape in shard.items()
            }
            save_file(values, directory / file, metadata={"format": "pt"})
        else:
            write_hole(directory / file, shard)
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    write_json(
        directory / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
    )


def write_hole(path: Path, tensors: Mapping[str, Shape]) -> None:
    """Write a safetensors file of the right size of which only the header takes disk."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        begin, end = end, end + tensor_bytes(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    data = json.dumps(header).encode()
    data += b" " * (-len(data) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(data)) + data)
        file.truncate(8 + len(data) + end)


def write_pickle(path: Path, tensors: Mapping[str, Shape]) -> None:
    """Write what stands for pickled weights: a hole of their size, which nothing can load."""
    with path.open("wb") as file:
        file.truncate(sum(map(tensor_bytes, tensors.values())))


def tensor_bytes(shape: Shape) -> int:
    return prod(shape) * BYTES_PER_VALUE
