"""A registry server: tags, blobs and manifests over the OCI distribution protocol.

Files are streamed; memory does not grow with their size. Interrupted uploads start over, finished
blobs are never sent twice.

Format: https://github.com/opencontainers/distribution-spec/blob/main/spec.md
"""

from typing import Final

import requests

from pipeline.adapters.docker_credentials import credentials_for
from pipeline.adapters.oci_blob import Blob
from pipeline.adapters.registry_errors import nonsense, read_short
from pipeline.adapters.registry_http import RegistryHttp
from pipeline.domain.oci import INDEX_TYPE, MANIFEST_TYPE, Descriptor, blob_digest

DIGEST_HEADER: Final = "Docker-Content-Digest"
UPLOAD_TYPE: Final = "application/octet-stream"
# What a tag may name, whoever pushed it; the last two are Docker's own forms.
ANY_MANIFEST: Final = (
    MANIFEST_TYPE,
    INDEX_TYPE,
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)


class Registry:
    """One repository of a registry server. All methods raise FailureError in one line."""

    def __init__(self, url: str, repository: str) -> None:
        host = url.split("://")[1]
        self._http = RegistryHttp(url, repository, credentials_for(host))
        self._repository = repository

    def reference(self, tag: str) -> str:
        return f"{self._http.host}/{self._repository}:{tag}"

    def tag_digest(self, tag: str) -> str | None:
        """The digest that `tag` names, or None when the registry does not have it.

        It is computed from the manifest's bytes, whatever the registry says it is.
        """
        answer = self._http.send(
            "GET",
            self._http.url(f"manifests/{tag}"),
            headers={"Accept": ", ".join(ANY_MANIFEST)},
            expect=(200, 404),
        )
        if answer.status_code == requests.codes.not_found:
            return None
        content_type = answer.headers.get("Content-Type", "").partition(";")[0]
        if content_type not in ANY_MANIFEST:
            raise nonsense(self._http.host, f"{content_type or 'something'} for a manifest")
        return blob_digest(read_short(answer, self._http.host))

    def push_blob(self, blob: Blob) -> None:
        """Upload a blob unless the registry has it."""
        if self._has(blob.descriptor):
            return
        start = self._http.send("POST", self._http.url("blobs/uploads/"), expect=(202,))
        upload = self._http.location(start)
        separator = "&" if "?" in upload else "?"
        answer = self._http.send(
            "PUT",
            f"{upload}{separator}digest={blob.descriptor.digest}",
            headers={"Content-Type": UPLOAD_TYPE},
            body=lambda: blob,
            expect=(201,),
        )
        self._check_digest(answer, blob.descriptor.digest)

    def push_manifest(self, tag: str, manifest: Blob) -> None:
        """Store a manifest whose blobs are there, and name it `tag`."""
        answer = self._http.send(
            "PUT",
            self._http.url(f"manifests/{tag}"),
            headers={"Content-Type": manifest.descriptor.media_type},
            body=lambda: manifest,
            expect=(201,),
        )
        self._check_digest(answer, manifest.descriptor.digest)
        if self.tag_digest(tag) != manifest.descriptor.digest:
            raise nonsense(
                self._http.host, f"another manifest under {tag} than the one it was sent"
            )

    def _has(self, blob: Descriptor) -> bool:
        answer = self._http.head(self._http.url(f"blobs/{blob.digest}"), expect=(200, 404))
        if answer.status_code == requests.codes.not_found:
            return False
        size = answer.headers.get("Content-Length")
        if size != str(blob.size):
            raise nonsense(self._http.host, f"the size {size} for a blob of {blob.size} bytes")
        self._check_digest(answer, blob.digest)
        return True

    def _check_digest(self, answer: requests.Response, digest: str) -> None:
        """The header is optional in the specification; when it is there it has to be right."""
        answered = answer.headers.get(DIGEST_HEADER, digest)
        if answered != digest:
            raise nonsense(self._http.host, f"the digest {answered[:80]!r} for {digest}")
