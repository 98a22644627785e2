"""promote: an alias such as `prod` points at a release from now on, and its history says so."""

from pipeline.adapters.oci_aliases import promote
from pipeline.adapters.oci_release import read_release
from pipeline.adapters.registry_place import open_release
from pipeline.domain.aliases import require_alias
from pipeline.domain.layout import Layout


def run(layout: Layout, *, ref: str, alias: str) -> None:
    """Move the alias. Raises InputError when `ref` is no release or `alias` no alias."""
    require_alias(alias)
    store, name = open_release(layout, ref)
    release = read_release(store, name)
    promote(store, alias, release.stored, release.package.title)
    print(f"{store.reference(alias)}: {release.package.title}, {release.digest}")
