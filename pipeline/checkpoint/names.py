"""Which files make up a checkpoint, and how a source of one is written.

Only what is needed to run and to release a model is ever taken: weights in safetensors, the
configuration, the tokenizer, the model card and legal texts. An allow-list, so that nothing that
could carry code (pickles, Python files) gets in under a new name.
"""

import re
from collections.abc import Collection

from pipeline.core.errors import InputError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CARD_FILE = "README.md"

# Names as transformers writes them: https://huggingface.co/docs/transformers
SIDECAR_FILES = frozenset(
    {
        CONFIG_FILE,
        INDEX_FILE,
        *TOKENIZER_FILES,
        TOKENIZER_CONFIG_FILE,
        CARD_FILE,
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
    }
)
_NAMED = r"([_-][A-Za-z0-9_-]{1,40}(\.\d+)*)?(\.(txt|md))?"
LEGAL_FILE = re.compile(
    r"(LICEN[SC]E|COPYING|NOTICE|USE_POLICY|ACCEPTABLE_USE)" + _NAMED, re.IGNORECASE
)
LICENSE_TEXT = re.compile(r"(LICEN[SC]E|COPYING)" + _NAMED, re.IGNORECASE)
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def sidecar_names(names: Collection[str]) -> tuple[str, ...]:
    """The files to take besides the weights, sorted."""
    return tuple(
        sorted(name for name in names if name in SIDECAR_FILES or LEGAL_FILE.fullmatch(name))
    )


def license_text(names: Collection[str]) -> str | None:
    """The file with the license's text: LICENSE, LICENCE or COPYING, the shortest name first."""
    texts = [name for name in names if LICENSE_TEXT.fullmatch(name)]
    return min(texts, key=lambda name: (len(name), name), default=None)


def weight_names(names: Collection[str], *, shards: Collection[str] | None) -> tuple[str, ...]:
    """The weight files to take, sorted.

    `shards` are the files that the index names, None without an index. Like transformers, one
    whole model.safetensors wins over shards. Raises InputError when there are no such weights.
    """
    if WEIGHTS_FILE in names:
        return (WEIGHTS_FILE,)
    if shards is not None:
        for shard in sorted(shards):
            if shard not in names:
                raise InputError(
                    f"{shard}: missing, though {INDEX_FILE} names it; the checkpoint is "
                    "incomplete: use another revision or ask its owner"
                )
        return tuple(sorted(shards))
    pickles = sorted(name for name in names if name.endswith(PICKLE_SUFFIXES))
    if pickles:
        raise InputError(
            f"{pickles[0]}: weights as a pickle, which can run code when it is read; expected "
            f"{WEIGHTS_FILE} or {INDEX_FILE}: use a safetensors revision or conversion of the model"
        )
    raise InputError(f"no weights: expected {WEIGHTS_FILE} or {INDEX_FILE} among the files")
