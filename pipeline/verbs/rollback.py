"""Roll an alias back to the release that it pointed at before its last promotion."""

from pipeline.core.workspace import Workspace
from pipeline.registry.alias_moves import rollback
from pipeline.registry.places import open_release


def run(workspace: Workspace, *, alias: str) -> None:
    """Point the alias back. Raises InputError when it had no release before."""
    store, name = open_release(workspace, alias)
    move = rollback(store, name)
    print(f"{store.reference(name)}: {move.title}, {move.digest}")
