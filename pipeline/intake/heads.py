"""Decide which output head a checkpoint has where config.json ties the head to the embedding.

The values in the files decide, as in transformers and vLLM: a head with other values is the head,
and config.json is corrected, because some converters of llama.cpp go by it alone
(`tie_word_embeddings`). A head with equal values is a copy, which variants leave out.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.checkpoint.checks import USE_ANOTHER, read_json_object
from pipeline.checkpoint.model_config import model_config
from pipeline.checkpoint.names import CONFIG_FILE, TEXT_SECTION
from pipeline.checkpoint.reading import Checkpoint
from pipeline.core.errors import InputError
from pipeline.core.files import write_json
from pipeline.records.intake import Finding

TIED_KEY = "tie_word_embeddings"
# vLLM multiplies with the embedding in these, whatever head the files have.
EMBEDDING_IS_HEAD = frozenset(
    {
        "Cohere2ForCausalLM",
        "Cohere2MoeForCausalLM",
        "CohereForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3nForCausalLM",
    }
)
COMPARED_ROWS = 4096


@dataclass(frozen=True)
class TiedHead:
    """The tensors of a head and of the embedding that config.json ties it to, both in the files."""

    head: str
    embedding: str


def announced_heads(tied: Iterable[TiedHead]) -> Iterator[Finding]:
    """Say what is there before the values are: which head counts shows in fetch."""
    for pair in tied:
        yield Finding(
            file="weights",
            found=f"{pair.head} is there, though {TIED_KEY} is true",
            done=f"fetch compares it with {pair.embedding}: other values count, a copy does not",
        )


def settle_heads(
    directory: Path, tied: Iterable[TiedHead], *, architecture: str
) -> tuple[tuple[str, ...], tuple[Finding, ...]]:
    """Compare the values of heads and embeddings; return the heads that are copies, and findings.

    config.json is changed in place where a head has values of its own. Raises InputError for such a
    head in an architecture of which vLLM takes none.
    """
    checkpoint = Checkpoint(directory)
    copies, findings = [], []
    for pair in tied:
        if _are_equal(checkpoint, pair):
            copies.append(pair.head)
            findings.append(
                Finding(
                    file="weights",
                    found=f"{pair.head} is a copy of {pair.embedding}",
                    done=f"variants leave it out: {TIED_KEY} is true",
                )
            )
            continue
        require_own_head(pair.head, architecture)
        _write_tied(directory, False)
        findings.append(
            Finding(
                file=CONFIG_FILE,
                found=f"{TIED_KEY} is true, though {pair.head} has other values than "
                f"{pair.embedding}",
                done=f"written as false: {pair.head} is the head, as in transformers and vLLM",
            )
        )
    config = model_config(directory)
    text, is_tied = config.get_text_config(), getattr(config, TIED_KEY, False)
    if text is not config and getattr(text, TIED_KEY, False) is not is_tied:
        _write_tied(directory, is_tied)
        findings.append(
            Finding(
                file=CONFIG_FILE,
                found=f"{TIED_KEY} is {not is_tied} for {TEXT_SECTION} alone, by which vLLM goes",
                done=f"written as {is_tied}, by which transformers goes",
            )
        )
    return tuple(copies), tuple(findings)


def _write_tied(directory: Path, is_tied: bool) -> None:
    """State in config.json, and in its section for the text part, whether the head is tied."""
    config = read_json_object(directory / CONFIG_FILE) | {TIED_KEY: is_tied}
    section = config.get(TEXT_SECTION)
    if isinstance(section, dict):
        config[TEXT_SECTION] = section | {TIED_KEY: is_tied}
    write_json(directory / CONFIG_FILE, config)


def require_own_head(head: str, architecture: str) -> None:
    """Raise InputError where vLLM would not read the head of a model that has one of its own."""
    if architecture in EMBEDDING_IS_HEAD:
        raise InputError(
            f"{head}: the model has a head of its own, but vLLM takes the embedding as the head "
            f"of every {architecture}; {USE_ANOTHER}"
        )


def _are_equal(checkpoint: Checkpoint, pair: TiedHead) -> bool:
    """Tell whether two matrices hold the same numbers, some rows at a time."""
    tensors = checkpoint.tensors([pair.head, pair.embedding])
    parts = (torch.split(tensors[name], COMPARED_ROWS) for name in (pair.head, pair.embedding))
    return all(torch.equal(own.double(), other.double()) for own, other in zip(*parts, strict=True))
