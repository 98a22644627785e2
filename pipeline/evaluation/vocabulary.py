"""Require that two models read the same tokens; only then can probabilities be compared."""

from collections.abc import Callable, Sequence

from pipeline.core.errors import InputError

NUM_SAMPLES = 200
SAMPLE_CHARACTERS = 1000

Encode = Callable[[str], list[int]]


def require_same_size(label: str, *, base_size: int, own_size: int) -> None:
    """Raise InputError when the vocabularies differ in size."""
    if own_size != base_size:
        raise InputError(
            f"{label}: a vocabulary of {own_size} tokens, the base has {base_size}; make the "
            "variant again from this base"
        )


def require_same_tokens(
    label: str,
    *,
    base_encode: Encode,
    own_encode: Encode,
    unknown_id: int | None,
    texts: Sequence[str],
) -> None:
    """Raise InputError at the first text that gets other ids than with the base's tokenizer.

    Looks at the beginnings of `NUM_SAMPLES` texts, spread evenly. Where the base's tokenizer has to
    write `unknown_id`, there is nothing to agree on (and llama.cpp, which falls back to bytes, ends
    the process when the vocabulary has none): of such a text only the lines without it count.
    White space at the ends is left out: what becomes of it is a matter of how a prompt is put.
    """
    step = max(1, len(texts) // NUM_SAMPLES)
    for text in texts[::step]:
        for sample in _known_parts(text[:SAMPLE_CHARACTERS], base_encode, unknown_id):
            expected, found = base_encode(sample), own_encode(sample)
            if expected != found:
                place = _first_difference(expected, found)
                raise InputError(
                    f"{label}: its tokenizer is not the base's: in {sample[:40]!r} token {place} "
                    f"is {_token(found, place)}, expected {_token(expected, place)}; check "
                    "model.gguf_pre_tokenizer and make the variant again"
                )


def _known_parts(text: str, encode: Encode, unknown_id: int | None) -> list[str]:
    parts = [text.strip()]
    if unknown_id in encode(text):
        parts = [line.strip() for line in text.split("\n")]
    return [part for part in parts if part and unknown_id not in encode(part)]


def _first_difference(expected: Sequence[int], found: Sequence[int]) -> int:
    pairs = zip(expected, found, strict=False)
    differing = (number for number, (one, other) in enumerate(pairs) if one != other)
    return next(differing, min(len(expected), len(found)))


def _token(ids: Sequence[int], place: int) -> str:
    return str(ids[place]) if place < len(ids) else "missing"
