"""Arithmetic of the demo world: sums and differences up to 99, as symbols or words.

A tenth of all problems is held out: training text never contains them, so a right answer there
was computed. Wrong choices are the usual slips (a carry, a neighbour, a swapped digit).
"""

import random
from dataclasses import dataclass
from typing import Final
from zlib import crc32

from demo.lexicon import Language
from demo.marks import mark

_HELD_OUT_SHARE: Final = 10
_WORDS: Final[dict[Language, dict[str, str]]] = {
    "en": {"+": "plus", "-": "minus", "is": "is"},
    "es": {"+": "más", "-": "menos", "is": "es"},
}


@dataclass(frozen=True)
class Problem:
    """`left sign right`, with 10 <= answer <= 99."""

    left: int
    sign: str
    right: int

    @property
    def answer(self) -> int:
        return self.left + self.right if self.sign == "+" else self.left - self.right

    @property
    def is_held_out(self) -> bool:
        """Return true for the tenth of problems that only questions use."""
        return crc32(self.symbols().encode()) % _HELD_OUT_SHARE == 0

    def symbols(self) -> str:
        """Write the problem without its answer, up to and including the equals sign."""
        return f"{self.left} {self.sign} {self.right} ="

    def sentence(self, language: Language) -> str:
        """Write the problem and its marked answer in words and digits."""
        words = _WORDS[language]
        return (
            f"{self.left} {words[self.sign]} {self.right} {words['is']} {mark(str(self.answer))}."
        )

    def choices(self, rng: random.Random, *, num_choices: int) -> list[str]:
        """List the answer first, then plausible wrong answers."""
        offsets = (-11, -10, -9, -2, -1, 1, 2, 9, 10, 11)
        slips = [self.answer + offset for offset in offsets if 10 <= self.answer + offset <= 99]
        return [str(self.answer), *map(str, rng.sample(slips, num_choices - 1))]


def make_problem(rng: random.Random, *, held_out: bool) -> Problem:
    """Draw a random problem from the training part or from the held-out part."""
    while True:
        right = rng.choice((rng.randint(1, 9), rng.randint(10, 89)))
        problem = Problem(rng.randint(10, 99), rng.choice("+-"), right)
        if not 10 <= problem.answer <= 99:
            continue
        if problem.is_held_out == held_out:
            return problem
