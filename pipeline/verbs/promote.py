"""Promote a release: point an alias such as `prod` at it, and write that into its history."""

from pipeline.core.workspace import Workspace
from pipeline.registry.alias_moves import promote
from pipeline.registry.aliases import require_alias
from pipeline.registry.places import open_release
from pipeline.registry.stored_release import read_release


def run(workspace: Workspace, *, ref: str, alias: str) -> None:
    """Point the alias at the release. Raises InputError for a wrong `ref` or `alias`."""
    require_alias(alias)
    store, name = open_release(workspace, ref)
    release = read_release(store, name)
    promote(store, alias, release.stored, release.package.title)
    print(f"{store.reference(alias)}: {release.package.title}, {release.digest}")
