"""Whether calibration text overlaps with evaluation text: shared runs of words.

A variant that was calibrated on the questions it is judged by would look better than it is. Two
texts overlap when they share NGRAM_WORDS words in a row, without regard to case, punctuation or
spaces. 13 is the length by which GPT-3's authors searched their training data for test sets
(arXiv 2005.14165, appendix C, which also finds spurious collisions below 8); shorter runs are
shared by unrelated texts. An evaluation text of fewer words is looked for whole: a question with
its right answer means something from few words on, but one or two words do not (MIN_WORDS).
Paraphrases and translations are not found.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence

NGRAM_WORDS = 13
MIN_WORDS = 3
_DIGEST_BYTES = 8

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
    """The runs of words of many texts, each kept as 8 bytes of its BLAKE2b digest.

    A false alarm needs two different runs with the same 8 bytes: with 10 million runs here and as
    many looked up, about 5 in a million.
    """

    def __init__(self) -> None:
        self._runs_by_length: dict[int, set[bytes]] = {}

    def add(self, text: str) -> None:
        """Remember every run of NGRAM_WORDS words of `text`, or all of it when it has fewer."""
        words = words_of(text)
        if len(words) >= MIN_WORDS:
            length = min(NGRAM_WORDS, len(words))
            self._runs_by_length.setdefault(length, set()).update(_runs(words, length))

    def overlaps(self, text: str) -> bool:
        """Whether `text` has a run of words that was added."""
        words = words_of(text)
        return any(
            run in known
            for length, known in self._runs_by_length.items()
            for run in _runs(words, length)
        )


def _runs(words: Sequence[str], length: int) -> Iterator[bytes]:
    for start in range(len(words) - length + 1):
        run = " ".join(words[start : start + length]).encode("utf-8", "surrogatepass")
        yield hashlib.blake2b(run, digest_size=_DIGEST_BYTES).digest()
