"""The words of the demo world, in English and Spanish.

Why a fixed list: a tiny model can only be measured on words it has seen often, and a list that is
read by a person is easier to keep correct in two languages than rules are. Spanish trades are
nouns with one form for both genders, so that no sentence needs agreement beyond articles.

Nothing here knows about people, tales or questions; it is vocabulary only.
"""

from dataclasses import dataclass
from typing import Final, Literal

Language = Literal["en", "es"]
LANGUAGES: Final[tuple[Language, ...]] = ("en", "es")


@dataclass(frozen=True)
class Word:
    """One noun or adjective: English, Spanish, and the Spanish article's gender (f or m)."""

    en: str
    es: str
    gender: Literal["f", "m"] = "m"

    def bare(self, language: Language) -> str:
        """Return the word alone."""
        return self.en if language == "en" else self.es

    def the(self, language: Language) -> str:
        """Return the word with its definite article."""
        if language == "en":
            return f"the {self.en}"
        return f"{'la' if self.gender == 'f' else 'el'} {self.es}"

    def a(self, language: Language) -> str:
        """Return the word with its indefinite article."""
        if language == "en":
            return f"{'an' if self.en[0] in 'aeiou' else 'a'} {self.en}"
        return f"{'una' if self.gender == 'f' else 'un'} {self.es}"


def _names(*lines: str) -> tuple[str, ...]:
    """Split the blank-separated names of all lines."""
    return tuple(name for line in lines for name in line.split())


def _words(*rows: str) -> tuple[Word, ...]:
    """Parse words from `english/spanish` or, when feminine in Spanish, `english/spanish*`."""
    pairs = (row.split("/") for row in rows)
    return tuple(Word(en, es.rstrip("*"), "f" if es.endswith("*") else "m") for en, es in pairs)


WOMEN: Final = _names(
    "Alma Brisa Celia Dora Frida Greta Jana Katia Luma Mara Nela Olga Petra Runa Silvia Vera"
)
MEN: Final = _names(
    "Arno Bruno Ciro Dario Egon Fabio Gil Hugo Ivo Jonas Lino Milo Nilo Otto Pavel Tomas"
)
SURNAMES: Final = _names(
    "Abril Bosco Canto Delmar Estrel Farrow Galan Harlan Ibarra Jordel Kamper Lobato",
    "Marlow Nordal Ortega Pardo Quiver Rosal Sabel Tamarin Urbel Valdor Yarrow Zorita",
    "Belmont Corvin Duarte Hollin Merrin Solano Tovar Weller",
)
TOWNS: Final = _names(
    "Arvel Belora Corten Dunmar Esvil Fargo Gorla Hestia",
    "Isola Korrin Lumbra Mirado Norvia Ostra Palmeda Velda",
)

TRADES: Final = _words(
    "artist/artista", "dentist/dentista", "florist/florista", "pianist/pianista",
    "journalist/periodista", "guide/guía", "singer/cantante", "trader/comerciante",
    "athlete/atleta", "potter/ceramista", "pilot/piloto", "poet/poeta",
    "tailor/modista", "driver/taxista", "sailor/navegante", "student/estudiante",
)  # fmt: skip
PETS: Final = _words(
    "goat/cabra*", "cat/gato", "dog/perro", "hen/gallina*", "duck/pato", "horse/caballo",
    "rabbit/conejo", "turtle/tortuga*", "parrot/loro", "fish/pez", "sheep/oveja*", "frog/rana*",
    "mouse/ratón", "donkey/burro", "owl/búho", "snake/serpiente*",
)  # fmt: skip
FOODS: Final = _words(
    "bread/pan", "rice/arroz", "cheese/queso", "soup/sopa*", "honey/miel*", "corn/maíz",
    "beans/frijoles", "apples/manzanas", "grapes/uvas", "nuts/nueces", "plums/ciruelas",
    "pears/peras", "olives/aceitunas", "onions/cebollas", "melon/melón", "cake/pastel",
)  # fmt: skip
INSTRUMENTS: Final = _words(
    "flute/flauta*", "drum/tambor", "guitar/guitarra*", "violin/violín", "harp/arpa",
    "horn/cuerno", "bell/campana*", "organ/órgano", "lute/laúd", "trumpet/trompeta*",
    "banjo/banjo", "cello/chelo",
)  # fmt: skip

OBJECTS: Final = _words(
    "lamp/lámpara*", "key/llave*", "rope/cuerda*", "book/libro", "hat/sombrero", "ring/anillo",
    "coin/moneda*", "knife/cuchillo", "basket/cesta*", "mirror/espejo", "map/mapa", "cup/taza*",
    "box/caja*", "shoe/zapato", "candle/vela*", "letter/carta*",
)  # fmt: skip
PLACES: Final = _words(
    "market/mercado", "mill/molino", "bridge/puente", "forest/bosque", "beach/playa*",
    "garden/jardín", "tower/torre*", "school/escuela*", "river/río", "farm/granja*",
    "inn/posada*", "cave/cueva*", "harbour/puerto", "church/iglesia*", "square/plaza*",
    "lake/lago",
)  # fmt: skip


def all_words() -> tuple[Word, ...]:
    """List every word that can be an answer, names of people and towns included."""
    names = tuple(Word(name, name) for name in WOMEN + MEN + SURNAMES + TOWNS)
    return names + TRADES + PETS + FOODS + INSTRUMENTS + OBJECTS + PLACES
