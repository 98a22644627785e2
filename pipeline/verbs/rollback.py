"""rollback: an alias points again at what it stood for before its last promotion."""

from pipeline.core.workspace import Layout
from pipeline.registry.alias_moves import rollback
from pipeline.registry.places import open_release


def run(layout: Layout, *, alias: str) -> None:
    """Move the alias back. Raises InputError when there is nothing to go back to."""
    store, name = open_release(layout, alias)
    move = rollback(store, name)
    print(f"{store.reference(name)}: {move.title}, {move.digest}")
