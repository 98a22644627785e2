"""Short tales with questions whose answers stand in the tale.

A tale follows one person or two, the objects they find and the places they go to, and keeps track
of where everything is. Questions ask about that state, so the answer has to be looked up in the
passage; memorised facts do not help. The other people, objects and places of the tale come first
among the wrong choices, so that answering with any word of the passage is not always enough.
"""

import random
from dataclasses import dataclass
from typing import Final

from demo.lexicon import MEN, OBJECTS, PLACES, WOMEN, Language
from demo.marks import mark

_CAST_SIZES: Final = (1, 1, 2)

_TEXTS: Final[dict[Language, dict[str, tuple[str, ...]]]] = {
    "en": {
        "opening": (
            "It was early in the morning.",
            "It was a cold day.",
            "The sun was shining.",
            "Long ago this happened.",
            "It happened after the rain.",
        ),
        "find": ("{who} found {a} at {place}.",),
        "go": ("{who} went to {place}.",),
        "give": (
            "{who} gave {known_the} to {whom}.",
            "{whom} asked for {the}, and {known_who} gave it away.",
        ),
        "closing": (
            "In the evening all was well.",
            "Then night came.",
            "People talked about it for years.",
            "That is the end of the tale.",
        ),
        "ask_found": ("What did {who} find?",),
        "ask_where_found": ("Where was {the}?",),
        "ask_who_found": ("Who found {the}?",),
        "ask_who_has": ("Who has {the} now?",),
        "ask_where_is": ("Where is {who} now?",),
    },
    "es": {
        "opening": (
            "Era muy temprano por la mañana.",
            "Era un día frío.",
            "El sol brillaba.",
            "Hace mucho tiempo pasó esto.",
            "Ocurrió después de la lluvia.",
        ),
        "find": ("{who} encontró {a} en {place}.",),
        "go": ("{who} fue hasta {place}.",),
        "give": (
            "{who} dio {known_the} a {whom}.",
            "{whom} pidió {the}, y {known_who} aceptó.",
        ),
        "closing": (
            "Por la noche todo estaba bien.",
            "Luego llegó la noche.",
            "La gente habló de ello durante años.",
            "Ese es el final del cuento.",
        ),
        "ask_found": ("¿Qué encontró {who}?",),
        "ask_where_found": ("¿Dónde estaba {the}?",),
        "ask_who_found": ("¿Quién encontró {the}?",),
        "ask_who_has": ("¿Quién tiene ahora {the}?",),
        "ask_where_is": ("¿Dónde está ahora {who}?",),
    },
}


@dataclass(frozen=True)
class TaleQuestion:
    """A question about one tale: the right answer first among `choices`."""

    text: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Tale:
    """A tale's text, marked where it repeats itself, and every question that it answers.

    `retold` tells its finds and walks again in another order, all but the first word marked.
    """

    text: str
    retold: str
    questions: tuple[TaleQuestion, ...]


def make_tale(rng: random.Random, language: Language, *, num_choices: int) -> Tale:
    """Make a random tale: each person finds an object, one walks on, one of two gives it away."""
    cast = rng.sample(WOMEN + MEN, rng.choice(_CAST_SIZES))
    found = dict(zip(cast, rng.sample(OBJECTS, len(cast)), strict=True))
    *origins, goal = places = rng.sample(PLACES, len(cast) + 1)
    origin = dict(zip(cast, origins, strict=True))
    walker = rng.choice(cast)
    position = origin | {walker: goal}
    holder = {found[who]: who for who in cast}

    def line(kind: str, **slots: str) -> str:
        return rng.choice(_TEXTS[language][kind]).format(**slots)

    finds = [
        line("find", who=who, a=found[who].a(language), place=origin[who].the(language))
        for who in cast
    ]
    walk = line("go", who=walker, place=goal.the(language))
    events = [walk]
    if len(cast) > 1:
        giver, taker = rng.sample(cast, 2)
        holder[found[giver]] = taker
        gift = found[giver].the(language)
        names = {"who": giver, "known_who": mark(giver), "whom": taker}
        events.append(line("give", **names, the=gift, known_the=mark(gift)))
        rng.shuffle(events)
    retold = rng.sample([*finds, walk], len(finds) + 1)
    opening = [line("opening")] if rng.random() < 0.4 else []
    lines = opening + finds + events
    if rng.random() < 0.3:
        lines.append(line("closing"))

    def ask(kind: str, right: str, others: list[str], spares: list[str], **slots: str) -> None:
        wrong = [choice for choice in others if choice != right]
        rng.shuffle(wrong)
        pool = [choice for choice in spares if choice != right and choice not in wrong]
        wrong += rng.sample(pool, num_choices)
        questions.append(
            TaleQuestion(line(kind, **slots), (right, *wrong[: num_choices - 1])),
        )

    questions: list[TaleQuestion] = []
    things = [word.bare(language) for word in found.values()]
    spots = [word.bare(language) for word in places]
    all_things = [word.bare(language) for word in OBJECTS]
    all_spots = [word.bare(language) for word in PLACES]
    for who in cast:
        the = found[who].the(language)
        ask("ask_found", found[who].bare(language), things, all_things, who=who)
        ask("ask_where_found", origin[who].bare(language), spots, all_spots, the=the)
        ask("ask_who_found", who, cast, list(WOMEN + MEN), the=the)
        ask("ask_who_has", holder[found[who]], cast, list(WOMEN + MEN), the=the)
        ask("ask_where_is", position[who].bare(language), spots, all_spots, who=who)
    rng.shuffle(questions)
    return Tale(" ".join(lines), " ".join(map(_mark_rest, retold)), tuple(questions))


def _mark_rest(sentence: str) -> str:
    """Mark everything after the first word of a sentence."""
    first, rest = sentence.split(" ", 1)
    return f"{first} {mark(rest)}"
