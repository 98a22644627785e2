"""Aliases such as `latest` and `prod`: tags that move by explicit command and leave a history.

An alias is a tag of the very manifest that it stands for, so that every tool pulls the release
itself. What it named before is in an artifact beside it under the tag `ALIAS.history`: one JSON
file to which every move adds a line. No version's tag looks like an alias, and no alias like a
history, as versions begin with a digit and aliases hold no dot.
"""

import re
from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import Field

from pipeline.core.errors import InputError, short_repr
from pipeline.core.file_records import Digest
from pipeline.core.record import Record

ALIAS: Final = re.compile(r"(?!sha256-)[a-z]([a-z0-9-]{0,62}[a-z0-9])?")
HISTORY_SUFFIX: Final = ".history"
HISTORY_ARTIFACT_TYPE: Final = "application/vnd.quantline.alias-history.v1"
HISTORY_LAYER_TYPE: Final = "application/vnd.quantline.alias-history.v1+json"
MAX_MOVES: Final = 10_000


class Move(Record):
    """One move of an alias: to which release, by which verb, and when (UTC)."""

    verb: Literal["promote", "rollback"]
    digest: Digest
    title: str
    time: datetime


class AliasHistory(Record):
    """Every move of one alias, oldest first."""

    alias: str
    moves: Annotated[tuple[Move, ...], Field(max_length=MAX_MOVES)]

    def standing(self) -> tuple[Move, ...]:
        """Return the promotions that still stand: a rollback takes the last one back.

        The alias names the last of them; those before are what it can be rolled back to.
        """
        stack: list[Move] = []
        for move in self.moves:
            if move.verb == "promote":
                stack.append(move)
            elif len(stack) > 1:
                stack.pop()
        return tuple(stack)

    def and_then(self, move: Move) -> "AliasHistory":
        """Return the history with one more move."""
        return AliasHistory(alias=self.alias, moves=(*self.moves, move))


def require_alias(name: str) -> str:
    """Return an alias. Raises InputError when it could be taken for a version or a digest."""
    if not ALIAS.fullmatch(name):
        raise InputError(
            f"{short_repr(name)}: expected an alias in lower case that begins with a letter, such "
            "as latest or prod"
        )
    return name
