"""Cut texts into windows of token ids, for calibration and evaluation.

Nothing here knows a tokenizer; the caller hands in the function that encodes one document. Texts
are read by `pipeline.core.documents`.
"""

import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import TypeVar

from pipeline.core.errors import InputError
from pipeline.core.record import sha256_hex

Text = TypeVar("Text")


def encodable(text: str, where: str) -> str:
    """Return a text that can be written as UTF-8. Raises InputError that begins with `where`."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: half of a surrogate pair at character {error.start}") from error
    return text


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
