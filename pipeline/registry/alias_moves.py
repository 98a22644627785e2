"""Aliases in a store: where they point, and moving them with a line in their history.

The history is written first and decides: a move that was killed between the two is completed by
the same command again. Registry servers have no way to change two tags at once, or only if nobody
else did, so two people who move one alias there in the same second may need to look twice.
"""

from datetime import UTC, datetime

from pipeline.core.errors import InputError
from pipeline.oci.blob import bytes_blob, no_progress
from pipeline.oci.records import (
    EMPTY_CONTENT,
    EMPTY_TYPE,
    MANIFEST_TYPE,
    ImageManifest,
    descriptor_of,
)
from pipeline.oci.store import ReadableStore, Store, StoredManifest, read_blob
from pipeline.registry.aliases import (
    HISTORY_ARTIFACT_TYPE,
    HISTORY_LAYER_TYPE,
    HISTORY_SUFFIX,
    AliasHistory,
    Move,
    require_alias,
)


def read_history(store: ReadableStore, alias: str) -> AliasHistory:
    """Return every move of an alias; none where it was never set. Raises InputError."""
    tag = alias + HISTORY_SUFFIX
    stored = store.manifest(tag)
    if stored is None:
        return AliasHistory(alias=alias, moves=())
    source = store.reference(tag)
    manifest = ImageManifest.from_untrusted(stored.data, source=source)
    if manifest.artifact_type != HISTORY_ARTIFACT_TYPE or len(manifest.layers) != 1:
        raise InputError(f"{source}: expected the history of an alias")
    history = AliasHistory.from_untrusted(read_blob(store, manifest.layers[0]), source=source)
    if history.alias != alias:
        raise InputError(f"{source}: the history of another alias, {history.alias!r}")
    return history


def promote(store: Store, alias: str, release: StoredManifest, title: str) -> None:
    """Point an alias at a release, unless it points there already."""
    require_alias(alias)
    with store.exclusive():
        history = read_history(store, alias)
        standing = history.standing()
        if not standing or standing[-1].digest != release.descriptor.digest:
            move = Move(
                verb="promote",
                digest=release.descriptor.digest,
                title=title,
                time=datetime.now(UTC).replace(microsecond=0),
            )
            _write_history(store, history.and_then(move))
        _point(store, alias, release)


def rollback(store: Store, alias: str) -> Move:
    """Take the last promotion of an alias back, and return the one that stands again.

    Raises InputError when there is nothing to go back to, or when the release is gone.
    """
    require_alias(alias)
    if not read_history(store, alias).moves:
        raise InputError(f"{store.reference(alias)}: no such alias; `quantline ls` lists them")
    with store.exclusive():
        history = read_history(store, alias)
        standing = history.standing()
        if len(standing) < 2:
            raise InputError(
                f"{store.reference(alias)}: no earlier release to go back to; `quantline promote` "
                "names another"
            )
        before = standing[-2]
        release = store.manifest(before.digest)
        if release is None:
            raise InputError(
                f"{store.reference(before.digest)}: {alias} pointed there before, and it is gone"
            )
        move = Move(
            verb="rollback",
            digest=before.digest,
            title=before.title,
            time=datetime.now(UTC).replace(microsecond=0),
        )
        _write_history(store, history.and_then(move))
        _point(store, alias, release)
    return before


def _point(store: Store, alias: str, release: StoredManifest) -> None:
    current = store.manifest(alias)
    if current is None or current.descriptor.digest != release.descriptor.digest:
        blob = bytes_blob(release.data, release.descriptor.media_type)
        store.push_manifest(blob, alias)


def _write_history(store: Store, history: AliasHistory) -> None:
    content = bytes_blob(history.to_bytes(), HISTORY_LAYER_TYPE)
    manifest = ImageManifest(
        schema_version=2,
        media_type=MANIFEST_TYPE,
        artifact_type=HISTORY_ARTIFACT_TYPE,
        config=descriptor_of(EMPTY_CONTENT, EMPTY_TYPE),
        layers=(content.descriptor,),
    )
    store.push_blob(content, no_progress)
    store.push_blob(bytes_blob(EMPTY_CONTENT, EMPTY_TYPE), no_progress)
    store.push_manifest(
        bytes_blob(manifest.to_bytes(), MANIFEST_TYPE), history.alias + HISTORY_SUFFIX
    )
