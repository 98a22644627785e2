"""The demo world's documents and data files; `python -m demo.world` writes the files.

Four uses, kept apart by construction: training text is an endless seeded stream; calibration text
comes from another seed and never asks an evaluation question; held-out text (perplexity, KL) has
its own tales and arithmetic but the world's facts; questions go to `eval/data`. Text is a
document of several pieces, one blank line between them. A chat is a document of its own.

The same code and seed give the same bytes. Nothing here needs the tokenizer or the model.
"""

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from demo.arithmetic import Problem, make_problem
from demo.lexicon import LANGUAGES, MEN, OBJECTS, PLACES, WOMEN, Language
from demo.marks import mark, unmarked
from demo.people import (
    ATTRIBUTES,
    NUM_PEOPLE,
    Fact,
    FactKey,
    Person,
    all_fact_keys,
    fact_choices,
    fame,
    make_people,
)
from demo.tales import Tale, make_tale

WORLD_SEED: Final = "quantline demo world 1"
NUM_CHOICES: Final = 4
NUM_FACT_QUESTIONS: Final = 600
NUM_ARITHMETIC_QUESTIONS: Final = 300
NUM_TALE_QUESTIONS: Final = 300
NUM_CALIBRATION_TEXTS: Final = 192
NUM_HELDOUT_TEXTS: Final = 96
TEXT_CHARACTERS: Final = 1500

BOS: Final = "<|bos|>"
EOS: Final = "<|eos|>"
ROLES: Final = ("<|system|>", "<|user|>", "<|assistant|>")

_SYSTEM: Final[dict[Language, tuple[str, ...]]] = {
    "en": ("You are a helpful guide.", "Answer with few words."),
    "es": ("Eres un guía amable.", "Responde con pocas palabras."),
}
_AGAIN: Final[dict[Language, str]] = {"en": "Again:", "es": "Otra vez:"}
_BETWEEN: Final[dict[Language, tuple[str, ...]]] = {
    "en": ("", "", ":", " with the", " and then the"),
    "es": ("", "", ":", " con", " y luego"),
}
_TALE_REQUEST: Final[dict[Language, str]] = {"en": "Tell me a tale.", "es": "Cuéntame un cuento."}


@dataclass(frozen=True)
class World:
    """What is true: the people, and which of their facts are evaluation questions."""

    people: tuple[Person, ...]
    fact_questions: tuple[FactKey, ...]
    fame_total: tuple[float, ...]

    def someone(self, rng: random.Random) -> int:
        """Draw the rank of a random person, famous ones more often."""
        return rng.choices(range(NUM_PEOPLE), cum_weights=self.fame_total)[0]


def make_world() -> World:
    """Make the one world of this seed."""
    rng = random.Random(f"{WORLD_SEED}: people")
    people = make_people(rng)
    keys = all_fact_keys()
    rng.shuffle(keys)
    asked = [
        key
        for language in LANGUAGES
        for key in [key for key in keys if key.language == language][:NUM_FACT_QUESTIONS]
    ]
    fame_total = tuple(accumulate(fame(rank) for rank in range(NUM_PEOPLE)))
    return World(people, tuple(asked), fame_total)


class Writer:
    """Writes documents about a world from one random stream.

    A `guarded` writer asks no fact question of the evaluation; every writer avoids the held-out
    arithmetic, and its tales come from its own stream. What can be known is marked (`demo.marks`).
    """

    def __init__(self, world: World, purpose: str, *, guarded: bool) -> None:
        self._world = world
        self._rng = random.Random(f"{WORLD_SEED}: {purpose}")
        self._forbidden = frozenset(world.fact_questions) if guarded else frozenset()

    def plain_document(self, *, num_characters: int) -> str:
        """Write pieces of one language or both, until the text is at least that long."""
        pieces: list[str] = []
        while sum(map(len, pieces)) < num_characters:
            pieces.append(self._piece(self._rng.choice(LANGUAGES)))
        return "\n\n".join(pieces)

    def chat_document(self) -> str:
        """Write a conversation as the chat template renders it, without the leading BOS."""
        rng = self._rng
        language = rng.choice(LANGUAGES)
        system, user, assistant = ROLES
        text = ""
        if rng.random() < 0.3:
            text += f"{system}{rng.choice(_SYSTEM[language])}{EOS}"
        for _ in range(rng.randint(1, 4)):
            request, reply = self._exchange(language)
            text += f"{user}{request}{EOS}{assistant}{reply}"
        return text

    def training_documents(self) -> Iterator[str]:
        """Yield endless documents, each from BOS to EOS."""
        while True:
            if self._rng.random() < 0.2:
                yield BOS + self.chat_document()
            else:
                length = self._rng.choice((1, 200, 500, TEXT_CHARACTERS))
                yield BOS + self.plain_document(num_characters=length) + EOS

    def _piece(self, language: Language) -> str:
        kind = self._rng.choices(
            ("portraits", "fact questions", "tale", "sums", "echo", "list"),
            weights=(26, 24, 22, 18, 14, 6),
        )[0]
        if kind == "portraits":
            return self._world.people[self._someone()].portrait(self._rng, language)
        if kind == "fact questions":
            asked = (self._fact_question(language) for _ in range(self._rng.randint(2, 6)))
            return "\n".join(f"{question} {mark(answer)}" for question, answer in asked)
        if kind == "tale":
            return self._tale(language)
        if kind == "sums":
            return self._sums(language)
        return self._echo(language) if kind == "echo" else self._list(language)

    def _exchange(self, language: Language) -> tuple[str, str]:
        chance = self._rng.random()
        if chance < 0.6:
            question, answer = self._fact_question(language)
            return question, mark(answer + EOS)
        if chance < 0.85:
            problem = make_problem(self._rng, held_out=False)
            return problem.symbols(), mark(f"{problem.answer}{EOS}")
        return _TALE_REQUEST[language], self._make_tale(language).text + EOS

    def _someone(self) -> int:
        return self._world.someone(self._rng)

    def _fact_question(self, language: Language) -> tuple[str, str]:
        while True:
            key = FactKey(self._someone(), self._rng.choice(list(ATTRIBUTES)), language)
            if key not in self._forbidden:
                question, fact = fact_question(self._world, key)
                return question, fact.told(self._rng).bare(language)

    def _make_tale(self, language: Language) -> Tale:
        return make_tale(self._rng, language, num_choices=NUM_CHOICES)

    def _tale(self, language: Language) -> str:
        tale = self._make_tale(language)
        asked = tale.questions[: self._rng.choice((0, 5, 10))]
        retold = [f"{_AGAIN[language]} {tale.retold}"] if self._rng.random() < 0.3 else []
        lines = [f"{question.text} {mark(question.choices[0])}" for question in asked]
        return "\n".join([tale.text, *retold, *lines])

    def _echo(self, language: Language) -> str:
        chosen = self._rng.sample(OBJECTS + PLACES, self._rng.randint(4, 10))
        words = " ".join(word.bare(language) for word in chosen)
        return f"{_AGAIN[language]} {words}. {mark(words)}."

    def _list(self, language: Language) -> str:
        size = self._rng.randint(3, 6)
        names = self._rng.sample(WOMEN + MEN, size)
        words = [word.bare(language) for word in self._rng.sample(OBJECTS + PLACES, size)]
        pairs = list(zip(*self._rng.sample((names, words), 2), strict=True))
        between = self._rng.choice(_BETWEEN[language])
        told = ", ".join(f"{left}{between} {right}" for left, right in pairs)
        again = self._rng.sample(pairs, size) + self._rng.sample(pairs, size)
        retold = ", ".join(f"{left}{between} {mark(right)}" for left, right in again)
        return f"{told}. {retold}."

    def _sums(self, language: Language) -> str:
        problems = [make_problem(self._rng, held_out=False) for _ in range(self._rng.randint(2, 8))]
        if self._rng.random() < 0.15:
            return " ".join(problem.sentence(language) for problem in problems)
        return "\n".join(f"{problem.symbols()} {mark(str(problem.answer))}" for problem in problems)


def fact_question(world: World, key: FactKey) -> tuple[str, Fact]:
    """Return the question about a fact, and the fact."""
    person = world.people[key.rank]
    return person.question(key.attribute, key.language), person.facts[key.attribute]


def _shuffled(rng: random.Random, text: str, choices: list[str]) -> dict[str, Any]:
    """Make one multiple-choice document; `choices` come with the right one first."""
    order = rng.sample(choices, len(choices))
    return {"prompt": text, "choices": order, "answer": order.index(choices[0])}


def fact_rows(world: World, language: Language) -> list[dict[str, Any]]:
    """Make questions about facts, with their choices."""
    rng = random.Random(f"{WORLD_SEED}: fact rows {language}")
    rows = []
    for key in world.fact_questions:
        if key.language == language:
            choices = fact_choices(rng, world.people, key, num_choices=NUM_CHOICES)
            rows.append(_shuffled(rng, fact_question(world, key)[0], choices))
    return rows


def arithmetic_rows() -> list[dict[str, Any]]:
    """Make distinct problems that no training text contains."""
    rng = random.Random(f"{WORLD_SEED}: arithmetic rows")
    problems: dict[Problem, None] = {}
    while len(problems) < NUM_ARITHMETIC_QUESTIONS:
        problems[make_problem(rng, held_out=True)] = None
    return [
        _shuffled(rng, problem.symbols(), problem.choices(rng, num_choices=NUM_CHOICES))
        for problem in problems
    ]


def tale_rows(language: Language) -> list[dict[str, Any]]:
    """Make one question about each of many new tales."""
    rng = random.Random(f"{WORLD_SEED}: tale rows {language}")
    rows = []
    for _ in range(NUM_TALE_QUESTIONS):
        tale = make_tale(rng, language, num_choices=NUM_CHOICES)
        question = tale.questions[0]
        rows.append(
            _shuffled(rng, f"{unmarked(tale.text)}\n{question.text}", list(question.choices))
        )
    return rows


def calibration_rows(world: World) -> list[dict[str, Any]]:
    """Make texts of about 512 tokens in the mixture of the training text; one in eight is chats."""
    writer = Writer(world, "calibration", guarded=True)
    rows = []
    for index in range(NUM_CALIBRATION_TEXTS):
        if index % 8:
            text = writer.plain_document(num_characters=TEXT_CHARACTERS)
        else:
            text = writer.chat_document()
            while len(text) < TEXT_CHARACTERS:
                text += BOS + writer.chat_document()
        rows.append({"text": unmarked(text)})
    return rows


def heldout_rows(world: World) -> list[dict[str, Any]]:
    """Make plain texts with tales of their own, for perplexity and KL."""
    writer = Writer(world, "held out", guarded=True)
    return [
        {"text": unmarked(writer.plain_document(num_characters=TEXT_CHARACTERS))}
        for _ in range(NUM_HELDOUT_TEXTS)
    ]


def data_files(world: World) -> dict[str, list[dict[str, Any]]]:
    """Make every data file by its path from the repository's root."""
    files = {"demo/data/calibration.jsonl": calibration_rows(world)}
    for language in LANGUAGES:
        files[f"eval/data/demo_facts_{language}.jsonl"] = fact_rows(world, language)
        files[f"eval/data/demo_tales_{language}.jsonl"] = tale_rows(language)
    files["eval/data/demo_arithmetic.jsonl"] = arithmetic_rows()
    files["eval/data/demo_heldout.jsonl"] = heldout_rows(world)
    return files


def write_data_files(root_dir: Path) -> list[Path]:
    """Write all data files below `root_dir`; return their paths."""
    paths = []
    for name, rows in data_files(make_world()).items():
        path = root_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8")
        paths.append(path)
    return paths


def main() -> None:
    """Write the data files into the repository, or below `--root-dir`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--root-dir", type=Path, default=Path(__file__).resolve().parents[1])
    for path in write_data_files(parser.parse_args().root_dir):
        print(path)


if __name__ == "__main__":
    main()
