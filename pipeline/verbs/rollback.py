"""rollback: an alias points again at what it stood for before its last promotion."""

from pipeline.adapters.oci_aliases import rollback
from pipeline.adapters.registry_place import open_release
from pipeline.domain.layout import Layout


def run(layout: Layout, *, alias: str) -> None:
    """Move the alias back. Raises InputError when there is nothing to go back to."""
    store, name = open_release(layout, alias)
    move = rollback(store, name)
    print(f"{store.reference(name)}: {move.title}, {move.digest}")
