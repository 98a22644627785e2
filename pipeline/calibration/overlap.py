"""Whether calibration text overlaps with evaluation text: shared runs of words.

A variant that was calibrated on the questions it is judged by would look better than it is. Two
texts overlap when they share NGRAM_WORDS words in a row, without regard to case, punctuation or
spaces. 13 is the length by which GPT-3's authors searched their training data for test sets
(arXiv 2005.14165, appendix C, which also finds spurious collisions below 8); shorter runs are
shared by unrelated texts. An evaluation text of fewer words is looked for whole: a question with
its right answer means something from few words on, but one or two words do not (MIN_WORDS).
Paraphrases and translations are not found.
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
    """The words of a text in lower case, without punctuation; compatible characters are unified."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class NgramIndex:
    """The runs of words of many texts, each kept as one hash of 64 bits.

    Words are hashed as numbers, which have the same hash in every process. A false alarm needs two
    different runs with the same hash: with 10 million runs here and as many looked up, about 5 in a
    million.
    """

    def __init__(self) -> None:
        self._number_of: dict[str, int] = {}
        self._runs_by_length: dict[int, set[int]] = {}

    def add(self, text: str) -> None:
        """Remember every run of NGRAM_WORDS words of `text`, or all of it when it has fewer."""
        words = words_of(text)
        if len(words) >= MIN_WORDS:
            numbers = [self._number_of.setdefault(it, len(self._number_of)) for it in words]
            length = min(NGRAM_WORDS, len(words))
            self._runs_by_length.setdefault(length, set()).update(_runs(numbers, length))

    def overlaps(self, text: str) -> bool:
        """Whether `text` has a run of words that was added."""
        numbers = [self._number_of.get(word, UNKNOWN) for word in words_of(text)]
        return not all(
            known.isdisjoint(_runs(numbers, length))
            for length, known in self._runs_by_length.items()
        )


def _runs(numbers: Sequence[int], length: int) -> Iterator[int]:
    return map(hash, zip(*(numbers[start:] for start in range(length)), strict=False))
