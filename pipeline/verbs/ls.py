"""List the releases of a registry or image layout, and the aliases that point to them.

The tags of manifests for Ollama are listed too: `ollama pull` wants such a tag.
"""

from pipeline.core.errors import InputError
from pipeline.core.workspace import Workspace
from pipeline.oci.records import DOCKER_MANIFEST_TYPE
from pipeline.oci.store import require_manifest
from pipeline.registry.aliases import ALIAS, HISTORY_SUFFIX
from pipeline.registry.evidence_kinds import REFERRERS_TAG
from pipeline.registry.places import open_reference

DIGEST_CHARACTERS = len("sha256:") + 12


def run(workspace: Workspace, *, place: str | None) -> None:
    """Print one line for each tag. Raises InputError for a reference to one release."""
    store, name = open_reference(workspace, place)
    if name is not None:
        raise InputError(f"{place}: names one release; `quantline show {place}` describes it")
    tags = [
        tag
        for tag in store.tags()
        if not tag.endswith(HISTORY_SUFFIX) and not REFERRERS_TAG.fullmatch(tag)
    ]
    manifests = {tag: require_manifest(store, tag).descriptor for tag in sorted(tags)}
    versions = {
        manifest.digest: tag for tag, manifest in manifests.items() if not ALIAS.fullmatch(tag)
    }
    width = max((len(tag) for tag in tags), default=0)
    for tag, manifest in manifests.items():
        meaning = ""
        if ALIAS.fullmatch(tag):
            meaning = f"  is {versions.get(manifest.digest, 'a release without a tag')}"
        elif manifest.media_type == DOCKER_MANIFEST_TYPE:
            meaning = "  for `ollama pull`"
        print(f"{tag:<{width}}  {manifest.digest[:DIGEST_CHARACTERS]}{meaning}")
