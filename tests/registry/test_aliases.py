"""Where an alias stands after any sequence of moves."""

from datetime import UTC, datetime

import pytest

from pipeline.registry.aliases import AliasHistory, Move

WHEN = datetime(2026, 1, 2, tzinfo=UTC)


def history(moves: str) -> AliasHistory:
    """A promotion for each letter, a rollback for each `<`."""
    made = AliasHistory(alias="prod", moves=())
    for letter in moves:
        verb = "rollback" if letter == "<" else "promote"
        digest = f"sha256:{ord(letter):064x}"
        made = made.and_then(
            Move.model_validate({"verb": verb, "digest": digest, "title": letter, "time": WHEN})
        )
    return made


@pytest.mark.parametrize(
    ("moves", "standing"),
    [("", ""), ("a", "a"), ("abc", "abc"), ("abc<", "ab"), ("abc<<", "a"), ("abc<<<", "a"),
     ("ab<c", "ac"), ("ab<c<", "a"), ("aba<", "ab")],
)  # fmt: skip
def test_a_rollback_takes_the_last_standing_promotion_back(moves: str, standing: str) -> None:
    assert "".join(move.title for move in history(moves).standing()) == standing


def test_a_history_is_the_same_after_a_file() -> None:
    made = history("ab<")
    assert AliasHistory.from_bytes(made.to_bytes(), source="x") == made
