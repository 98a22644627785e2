"""Reading and checking a release in a store, as `show`, `verify`, `pull` and `export` begin.

Manifest, config and the package's own manifest are compared with each other before a file of the
release is fetched; and so is the tag: whoever may write to a registry can move it to an older
release, which is as whole and as signed.
"""

from dataclasses import dataclass

from pipeline.core.errors import FailureError
from pipeline.core.file_records import Digest
from pipeline.oci.records import Descriptor
from pipeline.oci.store import ReadableStore, StoredManifest, read_blob, require_manifest
from pipeline.records.release import MANIFEST_FILE, PackageManifest, release_tag
from pipeline.registry.contents import Contents, check_config, check_package, contents_of


@dataclass(frozen=True)
class StoredRelease:
    """A release whose parts agree; `reference` is how the operator named it."""

    reference: str
    stored: StoredManifest
    contents: Contents
    package: PackageManifest

    @property
    def digest(self) -> Digest:
        """Return the digest of the manifest."""
        return self.stored.descriptor.digest

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Return the config and every file, each digest once."""
        every = (self.contents.manifest.config, *self.contents.files.values())
        return tuple({blob.digest: blob for blob in every}.values())


def read_release(store: ReadableStore, name: str) -> StoredRelease:
    """Return the release that a tag, alias or digest names. Raises InputError or FailureError."""
    stored = require_manifest(store, name)
    source = store.reference(name)
    contents = contents_of(stored.data, source=source)
    check_config(contents, read_blob(store, contents.manifest.config), source=source)
    package_data = read_blob(store, contents.files[MANIFEST_FILE])
    package = check_package(contents, package_data, source=source)
    tag = release_tag(package.version, package.variant)
    if name[0].isdigit() and name != tag:  # a version's: aliases begin with a letter
        raise FailureError(
            f"{source}: is {package.title}, whose tag is {tag}; somebody moved the tag of a version"
        )
    return StoredRelease(reference=source, stored=stored, contents=contents, package=package)
