"""Reading plain text for calibration and evaluation, and cutting it into windows of token ids.

A text file is somebody else's: every line is checked, and the first wrong one is named. Nothing
here knows a tokenizer; the caller hands in the function that encodes one document.
"""

import json
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

from pipeline.core.errors import InputError
from pipeline.core.record import sha256_hex

PLAIN_SUFFIXES = (".txt", ".raw")
SUPPORTED = '.jsonl (one {"text": ...} per line), .json (a list of texts), .txt or .raw'

Text = TypeVar("Text")


def read_texts(path: Path) -> list[str]:
    """The documents of a file in their order, without the empty ones.

    `.jsonl` holds one object with the key `text` per line (other keys are ignored), `.json` a list
    of strings or of such objects, `.txt` and `.raw` one document. Raises InputError, with the line
    where there is one, for anything else.
    """
    content = read_utf8(path)
    if path.suffix == ".jsonl":
        documents = list(_texts_of_lines(path, content))
    elif path.suffix == ".json":
        documents = list(_texts_of_list(path, content))
    elif path.suffix in PLAIN_SUFFIXES:
        documents = [content]
    else:
        raise InputError(f"{path}: unknown kind of text file; expected {SUPPORTED}")
    documents = [text for text in documents if text.strip()]
    if not documents:
        raise InputError(f"{path}: no text in it; expected at least one document")
    return documents


def read_utf8(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; correct the path or put the text there") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: a directory; expected a text file") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8 text; convert the file") from error


def _texts_of_lines(path: Path, content: str) -> Iterator[str]:
    # Only "\n" ends a line of JSON Lines: str.splitlines also cuts at characters inside strings.
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield _text_of(parse_json(line, where), where, strings_allowed=False)


def _texts_of_list(path: Path, content: str) -> Iterator[str]:
    items = parse_json(content, str(path))
    if not isinstance(items, list):
        raise InputError(f"{path}: expected a list of texts, found {_kind(items)}")
    for number, item in enumerate(items, start=1):
        yield _text_of(item, f"{path}, item {number}", strings_allowed=True)


def parse_json(content: str, where: str) -> object:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in content else ""
        raise InputError(f"{where}{line}: not valid JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"{where}: not usable as JSON: {error}") from error


def _text_of(item: object, where: str, *, strings_allowed: bool) -> str:
    text = item.get("text") if isinstance(item, dict) else item
    if not isinstance(text, str) or (isinstance(item, str) and not strings_allowed):
        expected = 'a string or an object with a string "text"'
        if not strings_allowed:
            expected = 'an object with a string "text"'
        raise InputError(f"{where}: expected {expected}, found {_kind(item)}")
    return encodable(text, where)


def encodable(text: str, where: str) -> str:
    """The text, if it can be written as UTF-8. Raises InputError that begins with `where`."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: half of a surrogate pair at character {error.start}") from error
    return text


def _kind(value: object) -> str:
    if isinstance(value, dict):
        keys = ", ".join(repr(str(key)[:20]) for key in list(value)[:3])
        return f"an object with the keys {keys}" if keys else "an empty object"
    if value is None:
        return "null"
    return {list: "a list", str: "a string", bool: "a boolean"}.get(type(value), "a number")


def token_windows(
    texts: Iterable[Text],
    encode: Callable[[Text], list[int]],
    *,
    window_tokens: int,
    num_windows: int,
    source: str,
) -> list[list[int]]:
    """Encode texts, join their ids, and cut `num_windows` windows of `window_tokens` ids.

    `encode` adds the special tokens around a document, such as BOS. Texts are encoded until there
    are enough ids. Raises InputError that begins with `source` when there are too few.
    """
    wanted = window_tokens * num_windows
    ids: list[int] = []
    for text in texts:
        ids += encode(text)
        if len(ids) >= wanted:
            return [ids[start : start + window_tokens] for start in range(0, wanted, window_tokens)]
    fitting = len(ids) // window_tokens
    or_fewer = f", or ask for at most {fitting} x {window_tokens}" if fitting else ""
    raise InputError(
        f"{source}: {len(ids):,} tokens, {wanted:,} needed for {num_windows} x {window_tokens}; "
        f"add text{or_fewer}"
    )


def token_ids_sha256(windows: Sequence[Sequence[int]]) -> str:
    """Return the sha256, in hex, of the ids of all windows, as little-endian 32-bit integers."""
    ids = array("i", chain.from_iterable(windows))
    if sys.byteorder == "big":
        ids.byteswap()
    return sha256_hex(ids.tobytes())
