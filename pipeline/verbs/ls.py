"""ls: the releases of a registry or image layout, and the aliases that stand for them."""

from pipeline.adapters.oci_store import require_manifest
from pipeline.adapters.registry_place import open_reference
from pipeline.domain.aliases import HISTORY_SUFFIX
from pipeline.domain.errors import InputError
from pipeline.domain.layout import Layout
from pipeline.domain.referrers import REFERRERS_TAG

DIGEST_CHARACTERS = len("sha256:") + 12


def run(layout: Layout, *, place: str | None) -> None:
    """Print one line for each tag. Raises InputError for a reference to one release."""
    store, name = open_reference(layout, place)
    if name is not None:
        raise InputError(f"{place}: names one release; `quantline show {place}` describes it")
    tags = [
        tag
        for tag in store.tags()
        if not tag.endswith(HISTORY_SUFFIX) and not REFERRERS_TAG.fullmatch(tag)
    ]
    width = max((len(tag) for tag in tags), default=0)
    for tag in sorted(tags):
        digest = require_manifest(store, tag).descriptor.digest
        print(f"{tag:<{width}}  {digest[:DIGEST_CHARACTERS]}")
