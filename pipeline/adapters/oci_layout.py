"""An OCI image layout on disk: a registry that is a directory.

`skopeo`, `oras` and others read it as it is (`oci:DIRECTORY:TAG`). Blobs appear whole or not at
all, and a tag appears in `index.json` after everything it names.

Format: https://github.com/opencontainers/image-spec/blob/main/image-layout.md
"""

import hashlib
from pathlib import Path
from typing import Final

from pipeline.adapters.files import PARTIAL_SUFFIX, readable_disk_errors, write_bytes, write_record
from pipeline.adapters.oci_blob import Blob
from pipeline.domain.errors import InputError
from pipeline.domain.oci import INDEX_TYPE, REF_NAME_ANNOTATION, ImageIndex

LAYOUT_FILE: Final = "oci-layout"
LAYOUT_CONTENT: Final = b'{"imageLayoutVersion":"1.0.0"}'
INDEX_FILE: Final = "index.json"


class ImageLayout:
    """The layout in `directory`, which is made by the first push; `shown_as` is its public name."""

    def __init__(self, directory: Path, *, shown_as: str) -> None:
        self._directory = directory
        self._shown_as = shown_as

    def reference(self, tag: str) -> str:
        return f"oci:{self._shown_as}:{tag}"

    def tag_digest(self, tag: str) -> str | None:
        """The digest that `tag` names, or None. Raises InputError when the index is damaged."""
        for entry in self._index().manifests:
            if (entry.annotations or {}).get(REF_NAME_ANNOTATION) == tag:
                return entry.digest
        return None

    def push_blob(self, blob: Blob) -> None:
        """Store a blob unless it is there. Raises InputError when its bytes have another digest."""
        path = self._blob_path(blob.descriptor.digest)
        if path.exists() and path.stat().st_size == blob.descriptor.size:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + PARTIAL_SUFFIX)
        digest = hashlib.sha256()
        with readable_disk_errors(path):
            try:
                with partial.open("wb") as file:
                    for chunk in blob:
                        digest.update(chunk)
                        file.write(chunk)
                if "sha256:" + digest.hexdigest() != blob.descriptor.digest:
                    raise InputError(
                        f"{blob.content!s}: changed while it was read; run the command again"
                    )
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)

    def push_manifest(self, tag: str, manifest: Blob) -> None:
        """Store a manifest whose blobs are there, and name it `tag`."""
        self.push_blob(manifest)
        write_bytes(self._directory / LAYOUT_FILE, LAYOUT_CONTENT)
        entry = manifest.descriptor.model_copy(update={"annotations": {REF_NAME_ANNOTATION: tag}})
        index = self._index()
        write_record(
            self._directory / INDEX_FILE,
            index.model_copy(update={"manifests": (*index.manifests, entry)}),
        )

    def _index(self) -> ImageIndex:
        path = self._directory / INDEX_FILE
        try:
            return ImageIndex.from_bytes(path.read_bytes(), source=str(path))
        except FileNotFoundError:
            return ImageIndex(schema_version=2, media_type=INDEX_TYPE, manifests=())

    def _blob_path(self, digest: str) -> Path:
        return self._directory / "blobs" / digest.replace(":", "/")
