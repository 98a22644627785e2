"""Compare the tokenizer as transformers loads it with tokenizer.json, and mend what differs."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.checkpoint.checks import USE_ANOTHER, read_json_object, read_tokenizer_file
from pipeline.checkpoint.names import TOKENIZER_CONFIG_FILE
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


def mend_tokenizer(directory: Path) -> Iterator[Finding]:
    """Let transformers load the tokenizer of a directory as tokenizer.json says.

    tokenizer_config.json is changed in place where that is needed. Raises InputError where
    transformers reads text otherwise whatever the class.
    """
    wrong = text_read_otherwise(directory, library_tokenizer(directory))
    if wrong is None:
        return
    path = directory / TOKENIZER_CONFIG_FILE
    config = read_json_object(path) if path.is_file() else {}
    stated = config.get(CLASS_KEY)
    write_json(path, config | {CLASS_KEY: GENERIC_CLASS})
    if still_wrong := text_read_otherwise(directory, library_tokenizer(directory)):
        raise InputError(
            f"{TOKENIZER_FILE}: transformers reads {short_repr(still_wrong)} otherwise than the "
            f"file says, as {short_repr(stated)} and as {GENERIC_CLASS}; {USE_ANOTHER}"
        )
    yield Finding(
        file=TOKENIZER_CONFIG_FILE,
        found=f"{CLASS_KEY} = {short_repr(stated)} makes transformers read {short_repr(wrong)} "
        f"otherwise than {TOKENIZER_FILE} says",
        done=f"written as {GENERIC_CLASS}, which takes the file as it is",
    )


def largest_token(directory: Path) -> tuple[int, str]:
    """Return the largest id of tokenizer.json, added tokens included, and its token."""
    vocabulary = read_tokenizer_file(directory).get_vocab()
    return max((number, token) for token, number in vocabulary.items())
