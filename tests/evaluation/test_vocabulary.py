import pytest

from pipeline.core.errors import InputError
from pipeline.evaluation.vocabulary import require_same_size, require_same_tokens

UNKNOWN = 0


def letters(text: str) -> list[int]:
    """1 for BOS, a letter's own code, and nothing else is known."""
    return [1, *(ord(it) if it.isalpha() or it == " " else UNKNOWN for it in text)]


def check(texts: list[str], own_encode: object = letters) -> None:
    require_same_tokens(
        "gguf-q4-k-m",
        base_encode=letters,
        own_encode=own_encode,  # type: ignore[arg-type]
        unknown_id=UNKNOWN,
        texts=texts,
    )


def test_the_same_tokenizer_passes() -> None:
    check(["uno dos", "tres"])


@pytest.mark.parametrize(
    ("own_encode", "message"),
    [
        (lambda text: letters(text)[1:], "in 'uno dos' token 0 is 117, expected 1"),
        (lambda text: [*letters(text), 2], "in 'uno dos' token 8 is 2, expected missing"),
        (lambda text: letters(text.replace("d", "t")), "token 5 is 116, expected 100"),
    ],
)
def test_other_ids_are_named_with_their_place(own_encode: object, message: str) -> None:
    with pytest.raises(InputError, match=f"^gguf-q4-k-m: .*{message}"):
        check(["uno dos"], own_encode)


def test_text_that_the_base_itself_cannot_write_is_never_shown_to_the_other() -> None:
    def strict(text: str) -> list[int]:
        assert UNKNOWN not in letters(text)
        return letters(text)

    check(["uno\ndos\n7\n", "7", " "], strict)


def test_only_beginnings_of_some_texts_are_read() -> None:
    read: list[int] = []

    def counting(text: str) -> list[int]:
        read.append(len(text))
        return letters(text)

    check(["a" * 5000] * 1000, counting)
    assert len(read) == 200
    assert max(read) == 1000


def test_vocabularies_of_different_size_are_refused() -> None:
    require_same_size("x", base_size=10, own_size=10)
    with pytest.raises(InputError, match=r"^x: a vocabulary of 9 tokens, the base has 10"):
        require_same_size("x", base_size=10, own_size=9)
