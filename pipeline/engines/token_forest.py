"""Lay out token sequences that begin alike, so that a shared beginning is computed once.

The choices of a question share its prompt, and questions share their examples. Such sequences grow
from common nodes; several trees make a forest, which an engine reads in one pass: each node sees
its ancestors and itself, and has its own position. Nothing here computes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

NO_PARENT = -1


@dataclass(frozen=True, order=True)
class Span:
    """Hold token ids to read, and the first position whose logits are wanted."""

    ids: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Forest:
    """Hold nodes in an order in which each comes after its parent.

    `parents` is NO_PARENT at a root. `paths` has the nodes of each of `spans`, root first. `wanted`
    are the nodes whose logits a span asks for, rising.
    """

    spans: list[Span] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)

    @property
    def wanted(self) -> list[int]:
        wanted = {
            node
            for span, path in zip(self.spans, self.paths, strict=True)
            for node in path[span.start :]
        }
        return sorted(wanted)

    def visible(self) -> npt.NDArray[np.bool_]:
        """Return a matrix [node, node]: whether the first attends to the second."""
        seen = np.eye(len(self.ids), dtype=np.bool_)
        for node, parent in enumerate(self.parents):
            if parent != NO_PARENT:
                seen[node] |= seen[parent]
        return seen

    def plant(self, span: Span) -> None:
        """Add a sequence; it shares the nodes that it has in common with the one added last."""
        path = self.paths[-1][: self.shared(span)] if self.paths else []
        for position in range(len(path), len(span.ids)):
            self.parents.append(path[-1] if path else NO_PARENT)
            path.append(len(self.ids))
            self.ids.append(span.ids[position])
            self.positions.append(position)
        self.spans.append(span)
        self.paths.append(path)

    def shared(self, span: Span) -> int:
        """Count the tokens that a sequence has in common with the one that was added last."""
        if not self.spans:
            return 0
        return _common(self.spans[-1].ids, span.ids)


def forests(spans: Iterable[Span], *, max_nodes: int, max_sequences: int) -> Iterator[Forest]:
    """Put the spans in forests of at most `max_nodes` and `max_sequences`; a longer span is alone.

    Sorted first, so that neighbours have most in common, and the order of arrival changes nothing.
    """
    forest = Forest()
    for span in sorted(spans):
        new_nodes = len(span.ids) - forest.shared(span)
        is_full = len(forest.ids) + new_nodes > max_nodes or len(forest.spans) == max_sequences
        if forest.spans and is_full:
            yield forest
            forest = Forest()
        forest.plant(span)
    if forest.spans:
        yield forest


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
