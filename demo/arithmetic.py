"""Arithmetic of the demo world: two-digit sums and differences, as symbols and as sentences.

A tenth of all problems is held out: training text never contains them, so a right answer there
was computed. Wrong choices are the usual slips (a carry, a neighbour, a swapped digit).
"""

import random
from dataclasses import dataclass
from typing import Final

from demo.lexicon import Language

_HELD_OUT_SHARE: Final = 10
_WORDS: Final[dict[Language, dict[str, str]]] = {
    "en": {"+": "plus", "-": "minus", "is": "is"},
    "es": {"+": "más", "-": "menos", "is": "es"},
}


@dataclass(frozen=True)
class Problem:
    """`left sign right`, with 0 <= answer <= 198."""

    left: int
    sign: str
    right: int

    @property
    def answer(self) -> int:
        return self.left + self.right if self.sign == "+" else self.left - self.right

    @property
    def is_held_out(self) -> bool:
        """True for the tenth of problems that only questions use."""
        return (self.left * 7 + self.right * 3) % _HELD_OUT_SHARE == 0

    def symbols(self) -> str:
        """The problem without its answer, up to and including the equals sign."""
        return f"{self.left} {self.sign} {self.right} ="

    def sentence(self, language: Language) -> str:
        """The problem and its answer in words and digits."""
        words = _WORDS[language]
        return f"{self.left} {words[self.sign]} {self.right} {words['is']} {self.answer}."

    def choices(self, rng: random.Random, *, num_choices: int) -> list[str]:
        """The answer first, then plausible slips, none of them equal to it."""
        slips = [
            self.answer + offset for offset in (-20, -11, -10, -9, -2, -1, 1, 2, 9, 10, 11, 20)
        ]
        slips = [slip for slip in slips if slip >= 0]
        return [str(self.answer), *map(str, rng.sample(slips, num_choices - 1))]


def make_problem(rng: random.Random, *, held_out: bool) -> Problem:
    """A random problem from the training part or from the held-out part."""
    while True:
        left, right = rng.randint(10, 99), rng.randint(10, 99)
        sign = rng.choice("+-")
        if sign == "-" and left < right:
            left, right = right, left
        problem = Problem(left, sign, right)
        if problem.is_held_out == held_out:
            return problem
