"""Arrange token sequences in prefix trees, so that an engine computes shared prefixes once.

The choices of a question share its prompt, and questions share their examples. A node of a tree is
one token; each sequence is a path from a root. Several trees make a forest, which an engine reads
in one pass. Each node attends to its ancestors and itself, and has its own position.
"""

from collections.abc import Iterable, Iterator
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

    A node is an index into `ids`, `positions` and `parents`; the parent of a root is NO_PARENT.
    `paths` has the nodes of each of `spans`, root first.
    """

    spans: list[Span] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)

    @property
    def wanted(self) -> list[int]:
        """Return the nodes whose logits a span asks for, in rising order."""
        wanted = {
            node
            for span, path in zip(self.spans, self.paths, strict=True)
            for node in path[span.start :]
        }
        return sorted(wanted)

    def visible(self) -> npt.NDArray[np.bool_]:
        """Return a matrix [nodes, nodes]: whether the row's node attends to the column's."""
        seen = np.eye(len(self.ids), dtype=np.bool_)
        for node, parent in enumerate(self.parents):
            if parent != NO_PARENT:
                seen[node] |= seen[parent]
        return seen

    def add(self, span: Span) -> None:
        """Add a sequence; it shares the nodes of its common prefix with the one added last."""
        path = self.paths[-1][: self.shared(span)] if self.paths else []
        for position in range(len(path), len(span.ids)):
            self.parents.append(path[-1] if path else NO_PARENT)
            path.append(len(self.ids))
            self.ids.append(span.ids[position])
            self.positions.append(position)
        self.spans.append(span)
        self.paths.append(path)

    def shared(self, span: Span) -> int:
        """Count the tokens of the prefix that a sequence shares with the one added last."""
        if not self.spans:
            return 0
        last = self.spans[-1].ids
        pairs = enumerate(zip(last, span.ids, strict=False))
        differing = (position for position, (one, other) in pairs if one != other)
        return next(differing, min(len(last), len(span.ids)))


def forests(spans: Iterable[Span], *, max_nodes: int, max_sequences: int) -> Iterator[Forest]:
    """Put the spans in forests of at most `max_nodes` and `max_sequences`; a longer span is alone.

    Spans are sorted, so that neighbours share long prefixes and their first order has no effect.
    """
    forest = Forest()
    for span in sorted(spans):
        new_nodes = len(span.ids) - forest.shared(span)
        is_full = len(forest.ids) + new_nodes > max_nodes or len(forest.spans) == max_sequences
        if forest.spans and is_full:
            yield forest
            forest = Forest()
        forest.add(span)
    if forest.spans:
        yield forest
