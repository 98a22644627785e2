"""Compare the tokenizer as transformers loads it with tokenizer.json, and mend what differs.

transformers builds a tokenizer of several files: tokenizer_config.json, special_tokens_map.json and
added_tokens.json can change what tokenizer.json says, and add tokens that the model has no row for.
"""

import json
from collections.abc import Container, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.checkpoint.checks import USE_ANOTHER, read_json_object, read_tokenizer_file
from pipeline.checkpoint.names import CONFIG_FILE, TOKENIZER_CONFIG_FILE
from pipeline.checkpoint.tokenizer import (
    CLASS_KEY,
    GENERIC_CLASSES,
    TOKENIZER_FILE,
    generic_tokenizer,
    library_tokenizer,
    text_read_otherwise,
)
from pipeline.core.errors import InputError, short_repr
from pipeline.core.files import write_json
from pipeline.intake.generation import GENERATION_FILE
from pipeline.records.intake import Finding

GENERIC_CLASS = GENERIC_CLASSES[0]
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_KEY, MAX_LENGTH_KEY, SPLIT_KEY = (
    "added_tokens_decoder",
    "model_max_length",
    "split_special_tokens",
)
END_KEY = "eos_token"
SPECIAL_KEYS = (
    "bos_token",
    END_KEY,
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
EOS_ID_KEY = "eos_token_id"
UNICODE_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents")


def mend_tokenizer(
    directory: Path, *, vocab_size: int, end_ids: tuple[object, ...]
) -> Iterator[Finding]:
    """Let transformers load the tokenizer of a directory as tokenizer.json says.

    tokenizer_config.json and special_tokens_map.json are changed in place where that is needed.
    `vocab_size` is the number of rows of the embedding, `end_ids` are values of eos_token_id of the
    other files. Raises InputError where transformers reads text otherwise whatever the class, for a
    token without a row, and where no file says which token ends a text.
    """
    yield from _mend_settings(directory)
    if (directory / TOKENIZER_FILE).is_file():
        content = read_json_object(directory / TOKENIZER_FILE)
        ids = read_tokenizer_file(directory).get_vocab()
        _require_stable_ids(content, ids)
        _require_rows(ids, vocab_size, file=TOKENIZER_FILE)
        yield from _mend_special_tokens(directory, ids, vocab_size)
        tokenizer = yield from _mend_class(directory)
        yield from _normalizer_findings(content)
    else:
        tokenizer = library_tokenizer(directory)
    ids = tokenizer.get_vocab()
    _require_rows(
        ids,
        vocab_size,
        file=f"{TOKENIZER_CONFIG_FILE}, {SPECIAL_TOKENS_FILE} or added_tokens.json",
    )
    yield from _mend_end(directory, tokenizer, end_ids)
    yield from _mend_ends(directory, set(ids.values()))


def _mend_ends(directory: Path, ids: Container[object]) -> Iterator[Finding]:
    """Leave out end-of-text ids that no token has, for which a server would wait in vain."""
    for path in (directory / name for name in (CONFIG_FILE, GENERATION_FILE)):
        values = dict(_read_optional(path))
        stated = values.get(EOS_ID_KEY)
        ends = stated if isinstance(stated, list) else [stated]
        named = [number for number in ends if number is None or number in ids]
        if len(named) < len(ends):
            values[EOS_ID_KEY] = named if named and isinstance(stated, list) else None
            write_json(path, values)
            yield Finding(
                file=path.name,
                found=f"{EOS_ID_KEY} = {short_repr(stated)}, and {TOKENIZER_FILE} has no token "
                "with each id",
                done=f"written as {json.dumps(values[EOS_ID_KEY])}",
            )


def _normalizer_findings(content: Mapping[str, object]) -> Iterator[Finding]:
    """Say that llama.cpp does not change the form of letters as `content` of the file asks for.

    Its source has no Unicode normalization for byte-level BPE
    (https://github.com/ggml-org/llama.cpp/issues/28845).
    """
    normalizer = content.get("normalizer")
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


def _require_stable_ids(content: Mapping[str, object], ids: Mapping[str, int]) -> None:
    """Raise InputError for an added token that the library gives another id than the file.

    The same for a model that reads a text in another way each time. `content` is that of the file,
    `ids` are those of the library.
    """
    model, stated = content.get("model"), content.get("added_tokens")
    if isinstance(model, dict) and model.get("dropout"):
        raise InputError(
            f"{TOKENIZER_FILE}: model.dropout = {short_repr(model['dropout'])} reads the same text "
            "in another way each time; set it to null in a copy of the model"
        )
    for token in stated if isinstance(stated, list) else ():
        number = ids.get(str(token.get("content"))) if isinstance(token, dict) else None
        if number is not None and number != token.get("id"):
            raise InputError(
                f"{TOKENIZER_FILE}: added token {short_repr(token['content'])} has id "
                f"{short_repr(token.get('id'))}, and the tokenizers library makes it {number}; "
                f"correct the file, which leaves out ids or repeats a token, or {USE_ANOTHER}"
            )


def _require_rows(ids: Mapping[str, int], vocab_size: int, *, file: str) -> None:
    """Raise InputError for a token that the embedding has no row for."""
    number, token = max((number, token) for token, number in ids.items())
    if number >= vocab_size:
        raise InputError(
            f"{file}: token {short_repr(token)} has id {number}, expected less than vocab_size = "
            f"{vocab_size} of {CONFIG_FILE}: the embedding has no row for it; remove the token or "
            f"{USE_ANOTHER}"
        )


def _mend_settings(directory: Path) -> Iterator[Finding]:
    """Remove settings with which transformers cannot read a text, or not as one is trained on."""
    path = directory / TOKENIZER_CONFIG_FILE
    config = _read_optional(path)
    limit = config.get(MAX_LENGTH_KEY)
    reasons = {}
    if limit is not None and type(limit) not in (int, float):
        reasons[MAX_LENGTH_KEY] = "the model's context is in config.json"
    if config.get(SPLIT_KEY):
        reasons[SPLIT_KEY] = "special tokens are read as such"
    if reasons:
        write_json(path, {key: value for key, value in config.items() if key not in reasons})
    for key, reason in reasons.items():
        yield Finding(
            file=TOKENIZER_CONFIG_FILE,
            found=f"{key} = {short_repr(config[key])}",
            done=f"removed: {reason}",
        )


def _mend_special_tokens(
    directory: Path, ids: Mapping[str, int], vocab_size: int
) -> Iterator[Finding]:
    """Let both files name the same special tokens, and none that the embedding has no row for.

    `ids` are those of tokenizer.json. transformers prefers special_tokens_map.json, unless
    tokenizer_config.json lists added tokens.
    """
    config_path, map_path = directory / TOKENIZER_CONFIG_FILE, directory / SPECIAL_TOKENS_FILE
    config, special = _read_optional(config_path), _read_optional(map_path)
    mended = dict(config)
    if ADDED_KEY not in config:
        for key in SPECIAL_KEYS:
            if key in special and key in config and _text(special[key]) != _text(config[key]):
                mended[key] = special[key]
                yield Finding(
                    file=TOKENIZER_CONFIG_FILE,
                    found=f"{key} = {short_repr(_text(config[key]))}, and {SPECIAL_TOKENS_FILE} "
                    f"has {short_repr(_text(special[key]))}",
                    done="written as there, as in transformers",
                )
    stated = {**special, **mended}
    if any(_text(stated.get(key)) not in {None, *ids} for key in SPECIAL_KEYS):
        ids = generic_tokenizer(directory).get_vocab()
    for key in SPECIAL_KEYS:
        token = _text(stated.get(key))
        if token is not None and ids.get(token, vocab_size) >= vocab_size:
            mended.pop(key, None)
            special.pop(key, None)
            yield Finding(
                file=TOKENIZER_CONFIG_FILE if key in config else SPECIAL_TOKENS_FILE,
                found=f"{key} = {short_repr(token)} is no token of {TOKENIZER_FILE}, and the "
                f"embedding has no row for another",
                done="removed",
            )
    if mended != config:
        write_json(config_path, mended)
    if special != _read_optional(map_path):
        write_json(map_path, special)


def _mend_class(directory: Path) -> Generator[Finding, None, Any]:
    """Write the generic class where transformers reads text otherwise than tokenizer.json says.

    Where that is not enough, the list of added tokens goes too: tokenizer.json has them all.
    Returns the tokenizer as transformers then loads it.
    """
    tokenizer, wrong = _loaded_and_checked(directory)
    if wrong is None:
        return tokenizer
    path = directory / TOKENIZER_CONFIG_FILE
    config = _read_optional(path)
    stated = short_repr(config.get(CLASS_KEY))
    generic = config | {CLASS_KEY: GENERIC_CLASS}
    write_json(path, generic)
    tokenizer, still_wrong = _loaded_and_checked(directory)
    done = f"written as {GENERIC_CLASS}, which takes {TOKENIZER_FILE} as it is"
    if still_wrong and generic.pop(ADDED_KEY, None) is not None:
        write_json(path, generic)
        tokenizer, still_wrong = _loaded_and_checked(directory)
        done = f"{done}, and {ADDED_KEY} removed"
    if still_wrong:
        raise InputError(
            f"{TOKENIZER_FILE}: as {stated} transformers {wrong}, and as {GENERIC_CLASS} it "
            f"{still_wrong}; {USE_ANOTHER}"
        )
    yield Finding(
        file=TOKENIZER_CONFIG_FILE,
        found=f"{CLASS_KEY} = {stated}, with which transformers {wrong}",
        done=done,
    )
    return tokenizer


def _loaded_and_checked(directory: Path) -> tuple[Any, str | None]:
    """Load transformers' tokenizer; say what it does otherwise than tokenizer.json, or None."""
    tokenizer = None
    try:
        tokenizer = library_tokenizer(directory)
        text = text_read_otherwise(directory, tokenizer)
    except InputError as error:
        return tokenizer, f"fails ({str(error).removeprefix(f'{directory}: ').partition(';')[0]})"
    if text is None:
        return tokenizer, None
    return tokenizer, f"reads {short_repr(text)} otherwise than {TOKENIZER_FILE}"


def _mend_end(directory: Path, tokenizer: Any, end_ids: tuple[object, ...]) -> Iterator[Finding]:
    """State the token that ends a text, which the other files know by its id."""
    if tokenizer.eos_token_id is not None:
        return
    for value in end_ids:
        number = value[0] if isinstance(value, list) and value else value
        token = tokenizer.convert_ids_to_tokens(number) if type(number) is int else None
        if token is not None:
            path = directory / TOKENIZER_CONFIG_FILE
            write_json(path, _read_optional(path) | {END_KEY: token})
            yield Finding(
                file=TOKENIZER_CONFIG_FILE,
                found=f"has no {END_KEY}, and {EOS_ID_KEY} is {number} elsewhere",
                done=f"written as {json.dumps(token)}",
            )
            return
    raise InputError(
        f"{TOKENIZER_CONFIG_FILE}: no {END_KEY}, and {CONFIG_FILE} has no {EOS_ID_KEY}: nothing "
        f"says which token ends a text; state it in a copy of the model, or {USE_ANOTHER}"
    )


def _read_optional(path: Path) -> dict[str, object]:
    return read_json_object(path) if path.is_file() else {}


def _text(token: object) -> str | None:
    """Return the text of a special token, which is a string or an object with its content."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
