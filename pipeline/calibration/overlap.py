"""Find overlap of calibration text with evaluation text: shared n-grams of words.

A variant that is calibrated on the questions of its evaluation scores better than it should. Two
texts overlap when they share NGRAM_WORDS words in a row, without regard to case, punctuation or
spaces. GPT-3's authors used the length 13 to search their training data for test sets (arXiv
2005.14165, appendix C, which also finds spurious collisions below 8). Unrelated texts share shorter
n-grams. A shorter evaluation text is searched as a whole if it has at least MIN_WORDS words; one or
two words are in too many texts. Paraphrases and translations are not found.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

NGRAM_WORDS = 13
MIN_WORDS = 3
UNKNOWN = -1

# Scripts that put no spaces between words: each of their characters counts as a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


def words_of(text: str) -> list[str]:
    """Split a text into words, case-folded, NFKC-normalized and without punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class NgramIndex:
    """The n-grams of many texts, each kept as one hash of 64 bits.

    Words are hashed as numbers, which have the same hash in every process. A false positive needs
    two different n-grams with the same hash. With 10 million n-grams in the index and as many
    looked up, the probability is about 5 in a million.
    """

    def __init__(self) -> None:
        self._number_of: dict[str, int] = {}
        self._runs_by_length: dict[int, set[int]] = {}

    def add(self, text: str) -> None:
        """Add every run of NGRAM_WORDS words of `text`, or the whole text when it has fewer."""
        words = words_of(text)
        if len(words) >= MIN_WORDS:
            numbers = [self._number_of.setdefault(word, len(self._number_of)) for word in words]
            length = min(NGRAM_WORDS, len(words))
            self._runs_by_length.setdefault(length, set()).update(_runs(numbers, length))

    def overlaps(self, text: str) -> bool:
        """Tell whether `text` has a run of words that was added."""
        numbers = [self._number_of.get(word, UNKNOWN) for word in words_of(text)]
        return not all(
            known.isdisjoint(_runs(numbers, length))
            for length, known in self._runs_by_length.items()
        )


def _runs(numbers: Sequence[int], length: int) -> Iterator[int]:
    return map(hash, zip(*(numbers[start:] for start in range(length)), strict=False))
