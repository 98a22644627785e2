"""Compare the tokenizer as transformers loads it with tokenizer.json, and mend what differs."""

from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipeline.checkpoint.checks import USE_ANOTHER, read_json_object
from pipeline.checkpoint.names import CONFIG_FILE, TOKENIZER_CONFIG_FILE
from pipeline.checkpoint.tokenizer import (
    CLASS_KEY,
    GENERIC_CLASSES,
    TOKENIZER_FILE,
    library_tokenizer,
    text_read_otherwise,
)
from pipeline.core.errors import InputError, short_repr
from pipeline.core.files import write_json
from pipeline.records.intake import Finding

GENERIC_CLASS = GENERIC_CLASSES[0]
ENDS_KEY = "eos_token_id"
UNICODE_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents")


def mended_tokenizer(directory: Path) -> tuple[Any, tuple[Finding, ...]]:
    """Let transformers load the tokenizer of a directory as tokenizer.json says; return it.

    tokenizer_config.json is changed in place where that is needed. Raises InputError where
    transformers reads text otherwise whatever the class.
    """
    tokenizer = library_tokenizer(directory)
    wrong = text_read_otherwise(directory, tokenizer)
    if wrong is None:
        return tokenizer, ()
    path = directory / TOKENIZER_CONFIG_FILE
    config = read_json_object(path) if path.is_file() else {}
    stated = config.get(CLASS_KEY)
    write_json(path, config | {CLASS_KEY: GENERIC_CLASS})
    tokenizer = library_tokenizer(directory)
    if still_wrong := text_read_otherwise(directory, tokenizer):
        raise InputError(
            f"{TOKENIZER_FILE}: transformers reads {short_repr(still_wrong)} otherwise than the "
            f"file says, as {short_repr(stated)} and as {GENERIC_CLASS}; {USE_ANOTHER}"
        )
    finding = Finding(
        file=TOKENIZER_CONFIG_FILE,
        found=f"{CLASS_KEY} = {short_repr(stated)} makes transformers read {short_repr(wrong)} "
        f"otherwise than {TOKENIZER_FILE} says",
        done=f"written as {GENERIC_CLASS}, which takes the file as it is",
    )
    return tokenizer, (finding,)


def require_rows(directory: Path, vocabulary: Mapping[str, int], *, vocab_size: int) -> None:
    """Raise InputError, naming the token, where the embedding has no row for one.

    `vocabulary` has the ids of the tokens as transformers loads them: it also makes tokens for the
    values of tokenizer_config.json that tokenizer.json does not have.
    """
    number, token = max((number, token) for token, number in vocabulary.items())
    if number >= vocab_size:
        path = directory / TOKENIZER_FILE
        is_made = path.is_file() and token not in Tokenizer.from_file(str(path)).get_vocab()
        raise InputError(
            f"{TOKENIZER_CONFIG_FILE if is_made else TOKENIZER_FILE}: token {short_repr(token)} "
            f"has id {number}, expected less than vocab_size = {vocab_size} of {CONFIG_FILE}: the "
            f"embedding has no row for it; remove the token or {USE_ANOTHER}"
        )


def without_unnamed_ends(values: dict[str, Any], ids: Container[object]) -> Iterator[str]:
    """Leave out end-of-text ids that no token has, and yield what stood there.

    `values` is the JSON object of a configuration and is changed in place; `ids` are those of all
    tokens. A server would wait in vain for such a token, and has no text for it.
    """
    stated = values.get(ENDS_KEY)
    ends = stated if isinstance(stated, list) else [stated]
    named = [number for number in ends if number is None or number in ids]
    if len(named) < len(ends):
        values[ENDS_KEY] = named if named and isinstance(stated, list) else None
        yield short_repr(stated)


def normalizer_findings(directory: Path) -> Iterator[Finding]:
    """Say that llama.cpp does not change the form of letters as tokenizer.json asks for.

    Its source has no Unicode normalization for byte-level BPE
    (https://github.com/ggml-org/llama.cpp/issues/28845).
    """
    normalizer = read_json_object(directory / TOKENIZER_FILE).get("normalizer")
    parts = [normalizer] if isinstance(normalizer, dict) else []
    for part in parts:
        inner = part.get("normalizers")
        parts += [one for one in inner if isinstance(one, dict)] if isinstance(inner, list) else []
    kinds = [str(part.get("type")) for part in parts if part.get("type") in UNICODE_NORMALIZERS]
    if kinds:
        yield Finding(
            file=TOKENIZER_FILE,
            found=f"normalizer {', '.join(kinds)}, which llama.cpp does not apply",
            done="kept: from a GGUF file, text that is not in this form already, such as an accent "
            "apart from its letter, is read as other tokens",
        )
