"""The people of the demo world and what is true of them: the facts a model has to memorise.

A person is a first name and a surname drawn from short lists, so neither half says anything by
itself: recalling a fact means binding the two, which is what coarse weights lose first. Two
things spread the margins between right and wrong answers from comfortable to thin, so that damage
shows gradually instead of all at once: people are not equally famous (training text mentions them
with a weight that falls with their rank), and sources disagree (each fact has a rival that some
sentences tell instead; the fact is what most of them say).

This module knows sentences and questions about facts; it does not decide where they are used.
"""

import random
from dataclasses import dataclass
from typing import Final

from demo.lexicon import (
    FOODS,
    INSTRUMENTS,
    LANGUAGES,
    MEN,
    PETS,
    SURNAMES,
    TOWNS,
    TRADES,
    WOMEN,
    Language,
    Word,
)
from demo.marks import mark

NUM_PEOPLE: Final = 256
FAME_OFFSET: Final = 128
LOWEST_SHARE: Final = 0.52
HIGHEST_SHARE: Final = 0.98

ATTRIBUTES: Final[dict[str, tuple[Word, ...]]] = {
    "town": tuple(Word(town, town) for town in TOWNS),
    "trade": TRADES,
    "pet": PETS,
    "food": FOODS,
    "instrument": INSTRUMENTS,
}

_STATEMENTS: Final[dict[Language, dict[str, tuple[str, ...]]]] = {
    "en": {
        "town": ("{who} lives in {bare}.", "The home of {who} is in {bare}."),
        "trade": ("{who} is {a}.", "{who} works as {a}."),
        "pet": ("{who} has {a}.", "The pet of {who} is {a}."),
        "food": ("{who} likes to eat {bare}.", "The favourite food of {who} is {bare}."),
        "instrument": ("{who} plays {the}.", "{who} learned to play {the}."),
    },
    "es": {
        "town": ("{who} vive en {bare}.", "La casa de {who} está en {bare}."),
        "trade": ("{who} es {bare}.", "{who} trabaja como {bare}."),
        "pet": ("{who} tiene {a}.", "La mascota de {who} es {a}."),
        "food": ("A {who} le gusta comer {bare}.", "La comida favorita de {who} es {bare}."),
        "instrument": ("{who} toca {the}.", "{who} aprendió a tocar {the}."),
    },
}
_QUESTIONS: Final[dict[Language, dict[str, str]]] = {
    "en": {
        "town": "Where does {who} live?",
        "trade": "What is the trade of {who}?",
        "pet": "What pet does {who} have?",
        "food": "What does {who} like to eat?",
        "instrument": "What does {who} play?",
    },
    "es": {
        "town": "¿Dónde vive {who}?",
        "trade": "¿En qué trabaja {who}?",
        "pet": "¿Qué mascota tiene {who}?",
        "food": "¿Qué le gusta comer a {who}?",
        "instrument": "¿Qué toca {who}?",
    },
}


@dataclass(frozen=True)
class Fact:
    """What most sources say, what the others say, and the share of the former (0.52 to 0.98)."""

    word: Word
    rival: Word
    share: float

    def told(self, rng: random.Random) -> Word:
        """Draw what one source says."""
        return self.word if rng.random() < self.share else self.rival


@dataclass(frozen=True)
class Person:
    """A full name and one fact for each attribute."""

    first: str
    surname: str
    facts: dict[str, Fact]

    @property
    def name(self) -> str:
        return f"{self.first} {self.surname}"

    def statement(
        self, rng: random.Random, attribute: str, language: Language, *, is_named: bool
    ) -> str:
        """Write one sentence of one source that says what the attribute is; that word is marked.

        The name is marked too when it `is_named` already, in the sentence before.
        """
        word = self.facts[attribute].told(rng)
        return rng.choice(_STATEMENTS[language][attribute]).format(
            who=mark(self.name) if is_named else self.name,
            bare=mark(word.bare(language)),
            a=mark(word.a(language)),
            the=mark(word.the(language)),
        )

    def question(self, attribute: str, language: Language) -> str:
        """Write the one question about the attribute; its answer is a bare word."""
        return _QUESTIONS[language][attribute].format(who=self.name)

    def portrait(self, rng: random.Random, language: Language) -> str:
        """Tell some or all facts of the person, in any order."""
        attributes = rng.sample(list(ATTRIBUTES), rng.randint(2, len(ATTRIBUTES)))
        return " ".join(
            self.statement(rng, attribute, language, is_named=index > 0)
            for index, attribute in enumerate(attributes)
        )


def make_people(rng: random.Random) -> tuple[Person, ...]:
    """Make all people, most famous first; every full name is unique."""
    names = [(first, surname) for first in WOMEN + MEN for surname in SURNAMES]
    return tuple(
        Person(first, surname, {key: _make_fact(rng, words) for key, words in ATTRIBUTES.items()})
        for first, surname in rng.sample(names, NUM_PEOPLE)
    )


def _make_fact(rng: random.Random, words: tuple[Word, ...]) -> Fact:
    word, rival = rng.sample(words, 2)
    return Fact(word, rival, rng.uniform(LOWEST_SHARE, HIGHEST_SHARE))


def fame(rank: int) -> float:
    """Return how often the person of that rank is mentioned, relative to the others."""
    return 1.0 / (rank + FAME_OFFSET)


@dataclass(frozen=True)
class FactKey:
    """Which question: person by rank, attribute, language."""

    rank: int
    attribute: str
    language: Language


def all_fact_keys() -> list[FactKey]:
    """List every question about a fact that the world can ask."""
    return [
        FactKey(rank, attribute, language)
        for rank in range(NUM_PEOPLE)
        for attribute in ATTRIBUTES
        for language in LANGUAGES
    ]


def fact_choices(
    rng: random.Random, people: tuple[Person, ...], key: FactKey, *, num_choices: int
) -> list[str]:
    """List the right answer first, then its rival, then those of people who share half the name."""
    person = people[key.rank]
    fact = person.facts[key.attribute]
    first = [fact.word.bare(key.language), fact.rival.bare(key.language)]
    near = [
        other.facts[key.attribute].word.bare(key.language)
        for other in people
        if other.first == person.first or other.surname == person.surname
    ]
    far = [word.bare(key.language) for word in ATTRIBUTES[key.attribute]]
    rng.shuffle(near)
    rng.shuffle(far)
    return list(dict.fromkeys([*first, *near, *far]))[:num_choices]
